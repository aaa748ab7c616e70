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

/* Whether requests complete: those that are signaled, or all (sq_sig_all). */
#define STAND_IN_SIGNALED 1
#define STAND_IN_ALL 2
#define STAND_IN_COMPLETIONS 65536
extern int stand_in_completes;
/* One that no request of this side asked for: a receive, or an error. */
void stand_in_complete(const struct ibv_wc *wc);

/* Gives a context this provider's functions, by verbs_set_ops of libibverbs. */
void stand_in_alloc_context(struct verbs_context *context);

/* Gives a queue pair the functions of the extended API, as create_qp_ex of a provider does. */
void stand_in_extend(struct ibv_qp_ex *qp);

int poll_cq(struct ibv_cq *cq, int entries, struct ibv_wc *wc);
int post_send(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad);
int post_recv(struct ibv_qp *qp, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad);
int post_srq_recv(struct ibv_srq *srq, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad);
struct ibv_ah *create_ah(struct ibv_pd *pd, struct ibv_ah_attr *attr);

/*
 * What a provider passes to libibverbs: struct verbs_context_ops, which is private to rdma-core. Like the real
 * one it has some 80 functions in the order of their names; these places are those of rdma-core 44.
 */
struct stand_in_ops {
	void *before[52];
	int (*poll_cq)(struct ibv_cq *cq, int entries, struct ibv_wc *wc);
	void *post_custom;
	int (*post_recv)(struct ibv_qp *qp, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad);
	int (*post_send)(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad);
	void *post_srq_ops;
	int (*post_srq_recv)(struct ibv_srq *srq, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad);
	void *after[18];
};

/* The head of what verbs_context.priv points to in libibverbs. */
struct stand_in_private {
	void *unused[3];
	struct stand_in_ops ops;
};

void verbs_set_ops(struct verbs_context *context, const struct stand_in_ops *ops);

/* In libibverbs.c: a context without descriptor, as ibv_open_device makes it. */
struct ibv_context *stand_in_open(struct ibv_device *device);

#endif
