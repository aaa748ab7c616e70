/* SPDX-License-Identifier: Apache-2.0 */
/* The stand-in provider (provider.c): its entry points, and the strings that its application pulls. */
#ifndef STAND_IN_PROVIDER_H
#define STAND_IN_PROVIDER_H

#include <infiniband/verbs.h>

#define STAND_IN_HANDLES 65536

/* With an error: posts accept so many requests, then fail; create_ah returns NULL. */
extern int stand_in_error;
extern unsigned int stand_in_accepts;
/* create_ah gives handles out in order; set back, it gives out an address again. */
extern unsigned int stand_in_next_handle;

int post_send(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad);
int post_recv(struct ibv_qp *qp, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad);
int post_srq_recv(struct ibv_srq *srq, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad);
struct ibv_ah *create_ah(struct ibv_pd *pd, struct ibv_ah_attr *attr);

#endif
