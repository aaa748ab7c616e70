// SPDX-License-Identifier: Apache-2.0
/*
 * A STAND-IN for libibverbs.so.1, over the stand-in provider: what the agent's helper process calls, and four
 * devices of which only the first is as it should be.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <infiniband/verbs.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "provider.h"

static const char *const names[] = { "whole0", "refused0", "nowhere0", "nosrq0" };
enum { WHOLE, REFUSED, NOWHERE, NO_SRQ, DEVICES };

static struct ibv_device devices[DEVICES];
static struct ibv_device *list[DEVICES + 1];

/* As dummy_ops.c of rdma-core: what a provider leaves out points into libibverbs itself. */
static int dummy_post_srq_recv(struct ibv_srq *srq, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
{
	return EOPNOTSUPP;
}

#undef ibv_get_device_list /* a macro that calls the function of that name with the count */
struct ibv_device **ibv_get_device_list(int *count)
{
	for (int i = 0; i < DEVICES; i++) {
		snprintf(devices[i].name, sizeof(devices[i].name), "%s", names[i]);
		list[i] = &devices[i];
	}
	if (count)
		*count = DEVICES;
	return list;
}

/* As in libibverbs/dummy_ops.c, with fewer functions. */
#define SET_OP(name)                                           \
	do {                                                   \
		if (ops->name) {                               \
			priv->ops.name = ops->name;            \
			context->context.ops.name = ops->name; \
		}                                              \
	} while (0)

void verbs_set_ops(struct verbs_context *context, const struct stand_in_ops *ops)
{
	struct stand_in_private *priv = (struct stand_in_private *)context->priv;

	SET_OP(poll_cq);
	SET_OP(post_recv);
	SET_OP(post_send);
	SET_OP(post_srq_recv);
}

static struct ibv_qp *create_qp_ex(struct ibv_context *context, struct ibv_qp_init_attr_ex *attr)
{
	struct ibv_qp_ex *qp;

	if (attr->qp_type == IBV_QPT_UC || attr->send_ops_flags & IBV_QP_EX_WITH_BIND_MW) {
		errno = EOPNOTSUPP; /* as a device that does not have all */
		return NULL;
	}
	qp = calloc(1, sizeof(*qp));
	qp->qp_base.context = context;
	qp->qp_base.qp_type = attr->qp_type;
	stand_in_extend(qp);
	return &qp->qp_base;
}

struct ibv_pd *ibv_alloc_pd(struct ibv_context *context)
{
	struct ibv_pd *pd = calloc(1, sizeof(*pd));

	pd->context = context;
	return pd;
}

struct ibv_cq *ibv_create_cq(struct ibv_context *context, int entries, void *cq_context,
			     struct ibv_comp_channel *channel, int vector)
{
	return calloc(1, sizeof(struct ibv_cq));
}

int ibv_modify_qp(struct ibv_qp *qp, struct ibv_qp_attr *attr, int mask)
{
	if (mask & IBV_QP_STATE)
		qp->state = attr->qp_state;
	return 0;
}

int ibv_destroy_qp(struct ibv_qp *qp)
{
	free(qp);
	return 0;
}

int ibv_destroy_cq(struct ibv_cq *cq)
{
	free(cq);
	return 0;
}

int ibv_dealloc_pd(struct ibv_pd *pd)
{
	free(pd);
	return 0;
}

struct ibv_context *stand_in_open(struct ibv_device *device)
{
	struct verbs_context *context = calloc(1, sizeof(*context));

	if (!context)
		abort();
	context->sz = sizeof(*context);
	context->create_qp_ex = create_qp_ex;
	context->priv = calloc(1, sizeof(struct stand_in_private));
	context->context.abi_compat = __VERBS_ABI_IS_EXTENDED;
	context->context.device = device;
	context->context.cmd_fd = -1;
	stand_in_alloc_context(context);
	return &context->context;
}

struct ibv_context *ibv_open_device(struct ibv_device *device)
{
	long which = device - devices;
	struct ibv_context *context;

	if (which == REFUSED) {
		errno = EACCES;
		return NULL;
	}
	context = stand_in_open(device);
	if (which == NO_SRQ)
		context->ops.post_srq_recv = dummy_post_srq_recv;
	if (which == NOWHERE)
		context->ops.post_recv = mmap(NULL, 4096, PROT_READ | PROT_EXEC,
					      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return context;
}

int ibv_close_device(struct ibv_context *context)
{
	struct verbs_context *whole = verbs_get_ctx(context);

	free(whole->priv);
	free(whole);
	return 0;
}

struct ibv_ah *ibv_create_ah(struct ibv_pd *pd, struct ibv_ah_attr *attr)
{
	return create_ah(pd, attr);
}

struct ibv_qp_ex *ibv_qp_to_qp_ex(struct ibv_qp *qp)
{
	return (struct ibv_qp_ex *)qp;
}
