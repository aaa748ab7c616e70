// SPDX-License-Identifier: Apache-2.0
/*
 * Two queue pairs of one process that write, read and send to each other, in the right way and in wrong ones,
 * and what came of it by its own count:
 *
 *   completer DEVICE GID_INDEX
 *
 * Reads one command a line from stdin and answers with a line of JSON:
 *   connect                 new queue pairs, which are ready to send
 *   write|read|send N SIZE  N requests, each signaled, all completed before the answer
 *   rkey | lkey | nobody | flush   one request that fails: with a wrong key, to a queue pair that is not there, or to
 *                           one that has no receive; and three behind it
 *   counts                  {"completed": {"OPCODE": n}, "errors": {"STATUS": n}, "received": bytes}
 */
#include <infiniband/verbs.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEPTH 64
#define SIZE (1 << 16)

static struct ibv_context *context;
static struct ibv_pd *pd;
static struct ibv_cq *cq;
static struct ibv_mr *mr;
static struct ibv_qp *pair[2];
static union ibv_gid gid;
static int gid_index;
static char *memory;
static uint64_t completed[256], errors[32], received, next_id = 1;

static void must(int good, const char *what)
{
	if (!good) {
		perror(what);
		exit(1);
	}
}

static void to_state(struct ibv_qp *qp, enum ibv_qp_state state, uint32_t peer)
{
	struct ibv_qp_attr attr = { .qp_state = state, .port_num = 1, .path_mtu = IBV_MTU_1024, .dest_qp_num = peer,
				    .max_dest_rd_atomic = 1, .min_rnr_timer = 1, .timeout = 8, .retry_cnt = 1,
				    .rnr_retry = 1, .max_rd_atomic = 1 };
	int mask = IBV_QP_STATE;

	attr.qp_access_flags = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ;
	attr.ah_attr.is_global = 1;
	attr.ah_attr.port_num = 1;
	attr.ah_attr.grh.dgid = gid;
	attr.ah_attr.grh.sgid_index = (uint8_t)gid_index;
	attr.ah_attr.grh.hop_limit = 1;
	if (state == IBV_QPS_INIT)
		mask |= IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS;
	if (state == IBV_QPS_RTR)
		mask |= IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC |
			IBV_QP_MIN_RNR_TIMER;
	if (state == IBV_QPS_RTS)
		mask |= IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN |
			IBV_QP_MAX_QP_RD_ATOMIC;
	must(!ibv_modify_qp(qp, &attr, mask), "ibv_modify_qp");
}

static void drain(int wanted)
{
	struct ibv_wc wc[16];

	while (wanted > 0) {
		int found = ibv_poll_cq(cq, 16, wc);

		must(found >= 0, "ibv_poll_cq");
		wanted -= found;
		for (int i = 0; i < found; i++) {
			if (wc[i].status) {
				errors[wc[i].status]++;
			} else {
				completed[wc[i].opcode]++;
				if (wc[i].opcode == IBV_WC_RECV)
					received += wc[i].byte_len;
			}
		}
	}
}

static void make_pair(int nobody)
{
	struct ibv_qp_init_attr attr = { .send_cq = cq, .recv_cq = cq, .qp_type = IBV_QPT_RC,
					 .cap = { DEPTH, DEPTH, 1, 1, 0 } };

	for (int i = 0; i < 2; i++) {
		if (pair[i])
			ibv_destroy_qp(pair[i]);
		must((pair[i] = ibv_create_qp(pd, &attr)) != NULL, "ibv_create_qp");
		to_state(pair[i], IBV_QPS_INIT, 0);
	}
	for (int i = 0; i < 2; i++) {
		to_state(pair[i], IBV_QPS_RTR, nobody ? 0xFFFFF0 : pair[1 - i]->qp_num);
		to_state(pair[i], IBV_QPS_RTS, 0);
	}
}

static void post(enum ibv_wr_opcode opcode, uint32_t size, uint32_t wrong_lkey, uint32_t wrong_rkey)
{
	struct ibv_sge sge = { (uintptr_t)memory, size, mr->lkey ^ wrong_lkey };
	struct ibv_send_wr wr = { .wr_id = next_id++, .sg_list = &sge, .num_sge = 1, .opcode = opcode,
				  .send_flags = IBV_SEND_SIGNALED }, *bad;

	wr.wr.rdma.remote_addr = (uintptr_t)memory;
	wr.wr.rdma.rkey = mr->rkey ^ wrong_rkey;
	must(!ibv_post_send(pair[0], &wr, &bad), "ibv_post_send");
}

static void receive(uint32_t size)
{
	struct ibv_sge sge = { (uintptr_t)memory, size, mr->lkey };
	struct ibv_recv_wr wr = { .wr_id = next_id++, .sg_list = &sge, .num_sge = 1 }, *bad;

	must(!ibv_post_recv(pair[1], &wr, &bad), "ibv_post_recv");
}

static void print_counts(const char *name, const uint64_t *counts, int most)
{
	const char *comma = "";

	printf("\"%s\":{", name);
	for (int i = 0; i < most; i++)
		if (counts[i]) {
			printf("%s\"%d\":%" PRIu64, comma, i, counts[i]);
			comma = ",";
		}
	printf("},");
}

static int obey(const char *line)
{
	char word[16];
	uint32_t times, size;

	if (!strcmp(line, "connect")) {
		make_pair(0);
	} else if (sscanf(line, "%15s %u %u", word, &times, &size) == 3 && size <= SIZE) {
		enum ibv_wr_opcode opcode = word[0] == 'w' ? IBV_WR_RDMA_WRITE :
					    word[0] == 'r' ? IBV_WR_RDMA_READ : IBV_WR_SEND;

		for (uint32_t left = times; left;) {
			uint32_t some = left < 8 ? left : 8;

			for (uint32_t i = 0; i < some && opcode == IBV_WR_SEND; i++)
				receive(size);
			for (uint32_t i = 0; i < some; i++)
				post(opcode, size, 0, 0);
			drain((int)(opcode == IBV_WR_SEND ? 2 * some : some));
			left -= some;
		}
	} else {
		make_pair(!strcmp(line, "nobody"));
		for (int i = 0; i < 4; i++)
			post(!strcmp(line, "flush") ? IBV_WR_SEND : IBV_WR_RDMA_WRITE, 64, !i && !strcmp(line, "lkey"),
			     !i && !strcmp(line, "rkey"));
		drain(4);
	}
	return puts("true");
}

int main(int argc, char **argv)
{
	struct ibv_device **list = ibv_get_device_list(NULL);
	char line[64];

	must(argc == 3 && list, "arguments");
	for (; *list && strcmp(ibv_get_device_name(*list), argv[1]); list++)
		;
	must(*list && (context = ibv_open_device(*list)), "ibv_open_device");
	gid_index = atoi(argv[2]);
	must(!ibv_query_gid(context, 1, gid_index, &gid), "ibv_query_gid");
	must((memory = calloc(1, SIZE)) != NULL, "calloc");
	must((pd = ibv_alloc_pd(context)) != NULL, "ibv_alloc_pd");
	must((cq = ibv_create_cq(context, 4 * DEPTH, NULL, NULL, 0)) != NULL, "ibv_create_cq");
	mr = ibv_reg_mr(pd, memory, SIZE, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ);
	must(mr != NULL, "ibv_reg_mr");
	setvbuf(stdout, NULL, _IOLBF, 0);
	puts("true");
	while (fgets(line, sizeof(line), stdin)) {
		line[strcspn(line, "\n")] = 0;
		if (strcmp(line, "counts")) {
			obey(line);
			continue;
		}
		printf("{");
		print_counts("completed", completed, 256);
		print_counts("errors", errors, 32);
		printf("\"received\":%" PRIu64 "}\n", received);
	}
	return 0;
}
