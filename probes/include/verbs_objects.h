/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What a command of verbs that was seen as a system call makes, changes or ends, and the record it gives.
 *
 * Objects are handles of an open file, so its address is half of their key; it also tells two contexts of
 * one process apart.
 */
#ifndef FABRICTAP_VERBS_OBJECTS_H
#define FABRICTAP_VERBS_OBJECTS_H

#include "common.h"

#include <rdma/ib_user_ioctl_cmds.h>
#include <rdma/ib_user_verbs.h>

/* One ioctl, between its entry and its return. */
struct call {
	__u64 time_ns;
	__u64 header;	/* user address */
	__u64 file;
	__u32 uverbs;
	__u32 fd;
};

struct object_key {
	__u64 file;
	__u32 handle;
	__u32 class;	/* UVERBS_OBJECT_QP or UVERBS_OBJECT_MR */
};

struct object {
	__u32 number;	/* qpn, or lkey */
	__u32 rkey;
	__u32 type;
	__u32 port;
};

struct context_key {
	__u32 tgid;
	__u32 fd;
};

#define TABLE(name, kind, entries, key_type, value_type)      \
	struct {                                              \
		__uint(type, kind);                           \
		__uint(max_entries, entries);                 \
		__type(key, key_type);                        \
		__type(value, value_type);                    \
	} name SEC(".maps")

/* The least recently used goes when it is full: a later command on it counts as FT_LOSS_HANDLE. */
TABLE(objects, BPF_MAP_TYPE_LRU_HASH, 65536, struct object_key, struct object);
TABLE(contexts, BPF_MAP_TYPE_LRU_HASH, 4096, struct context_key, __u32);

static __always_inline struct ft_record *reserve_for(const struct call *call, __u32 kind)
{
	struct ft_record *record = reserve(kind);

	if (!record)
		return NULL;
	record->uverbs = call->uverbs;
	record->flags = FT_FLAG_UVERBS;
	return record;
}

static __always_inline struct object_key key_of(const struct call *call, __u32 class, __u32 handle)
{
	return (struct object_key){ .file = call->file, .handle = handle, .class = class };
}

static __always_inline void remember(const struct call *call, __u32 class, __u32 handle, struct object *object)
{
	struct object_key key = key_of(call, class, handle);

	if (bpf_map_update_elem(&objects, &key, object, BPF_ANY))
		lose(FT_LOSS_TABLE_FULL);
}

static __always_inline bool fetch(void *to, __u32 size, __u64 address)
{
	if (!bpf_probe_read_user(to, size, (const void *)address))
		return true;
	lose(FT_LOSS_FAULT);
	return false;
}

static __always_inline void context_opened(const struct call *call)
{
	struct context_key key = { .tgid = bpf_get_current_pid_tgid() >> 32, .fd = call->fd };
	struct ft_record *record;

	if (bpf_map_update_elem(&contexts, &key, &call->uverbs, BPF_ANY))
		lose(FT_LOSS_TABLE_FULL);
	record = reserve_for(call, FT_CONTEXT_OPENED);
	if (record)
		bpf_ringbuf_submit(record, 0);
}

static __always_inline void qp_created(const struct call *call, __u32 handle, __u32 qpn, __u32 type)
{
	struct object object = { .number = qpn, .type = type };
	struct ft_record *record;

	remember(call, UVERBS_OBJECT_QP, handle, &object);
	record = reserve_for(call, FT_QP_CREATED);
	if (!record)
		return;
	record->qp.qpn = qpn;
	record->qp.type = type;
	bpf_ringbuf_submit(record, 0);
}

static __always_inline void qp_modified(const struct call *call, __u64 address)
{
	struct ib_uverbs_modify_qp command;
	struct object_key key;
	struct object *object;
	struct ft_record *record;
	__u32 mask;

	if (!fetch(&command, sizeof(command), address))
		return;
	key = key_of(call, UVERBS_OBJECT_QP, command.qp_handle);
	object = bpf_map_lookup_elem(&objects, &key);
	if (!object) {
		lose(FT_LOSS_HANDLE);
		return;
	}
	mask = command.attr_mask;
	if (mask & IB_QP_PORT)
		object->port = command.port_num;
	record = reserve_for(call, FT_QP_MODIFIED);
	if (!record)
		return;
	record->qp.qpn = object->number;
	record->qp.type = object->type;
	record->qp.port = object->port;
	record->qp.mask = mask;
	if (mask & IB_QP_STATE)
		record->qp.state = command.qp_state;
	if (mask & IB_QP_DEST_QPN)
		record->qp.peer_qpn = command.dest_qp_num;
	if (mask & IB_QP_RQ_PSN)
		record->qp.rq_psn = command.rq_psn;
	if (mask & IB_QP_SQ_PSN)
		record->qp.sq_psn = command.sq_psn;
	if (mask & IB_QP_PATH_MTU)
		record->qp.path_mtu = command.path_mtu;
	if (mask & IB_QP_AV && command.dest.is_global) {
		__builtin_memcpy(record->qp.peer_gid, command.dest.dgid, FT_GID_LEN);
		record->qp.gid_index = command.dest.sgid_index;
		record->flags |= FT_FLAG_GID_INDEX;
	}
	bpf_ringbuf_submit(record, 0);
}

static __always_inline void mr_registered(const struct call *call, __u32 handle, const struct ft_mr *mr)
{
	struct object object = { .number = mr->lkey, .rkey = mr->rkey };
	struct ft_record *record;

	remember(call, UVERBS_OBJECT_MR, handle, &object);
	record = reserve_for(call, FT_MR_REGISTERED);
	if (!record)
		return;
	record->mr = *mr;
	record->flags |= FT_FLAG_ACCESS;
	bpf_ringbuf_submit(record, 0);
}

/* Told with the time of the call: its number may have been given out again before this return is seen. */
static __always_inline void destroyed(const struct call *call, __u32 class, __u32 handle)
{
	struct object_key key = key_of(call, class, handle);
	struct object *object = bpf_map_lookup_elem(&objects, &key);
	struct ft_record *record;

	if (!object) {
		lose(FT_LOSS_HANDLE);
		return;
	}
	record = reserve_for(call, class == UVERBS_OBJECT_QP ? FT_QP_DESTROYED : FT_MR_DEREGISTERED);
	if (record) {
		record->time_ns = call->time_ns;
		if (class == UVERBS_OBJECT_QP) {
			record->qp.qpn = object->number;
			record->qp.type = object->type;
		} else {
			record->mr.lkey = object->number;
			record->mr.rkey = object->rkey;
		}
		bpf_ringbuf_submit(record, 0);
	}
	bpf_map_delete_elem(&objects, &key);
}

#endif
