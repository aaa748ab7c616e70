// SPDX-License-Identifier: Apache-2.0
/*
 * A STAND-IN for an RDMA application over the stand-in provider. Reads commands, one a line, and answers each
 * with one line of JSON, so that whoever asks knows that it is done:
 *
 *   limits CHAIN LIST              see struct world
 *   device NAME | context DEVICE   what they make is numbered from 0; the answer of context is its address
 *   uverbs CONTEXT PATH            opens PATH and makes it the context's command descriptor
 *   forge CONTEXT                  its post_send points into the middle of an instruction
 *   qp CONTEXT QPN TYPE | srq CONTEXT HANDLE
 *   extend QP                      gives it the extended API and takes its struct ibv_qp_ex, as applications do
 *   batch QP TIMES MESSAGES OPCODE FLAGS SGES LENGTH HANDLE PEER SETTER ABORT   posts by that API
 *   ah GLOBAL LAST                 address handle with GID fe80::LAST, or without GRH; answers how many there are
 *   rewind                         the next handle gets the first one's address
 *   send QP TIMES CHAIN OPCODE FLAGS SGES LENGTH HANDLE PEER
 *   recv QP TIMES CHAIN SGES LENGTH | shared SRQ TIMES CHAIN SGES LENGTH
 *   mixed SEED THREADS POSTS       random posts in each of several threads
 *   fail ERROR ACCEPTED            see provider.h; 0 0 ends it
 *   bad qp|wr|next|sge|list QP     one post with unreadable memory, which is not tallied
 *   completes HOW                  1 requests that are signaled, 2 all, 0 none from now on
 *   complete QP WRID STATUS OPCODE BYTES FLAGS   one completion from nowhere
 *   reset QP                       ibv_modify_qp to RESET
 *   poll QP ENTRIES TIMES          polls the completion queue; answers how many completions there were
 *   drain QP                       polls until there are none; answers likewise
 *   steady SEED THREADS POSTS      posts signaled writes with a wr_id of their own from each of several threads, to
 *                                  all queue pairs, while one more thread polls all that completes
 *   polls CALLS                    polls QP 0's empty queue; answers as time does
 *   time CALLS                     posts one request with one element to QP 0; answers CPU and wall nanoseconds
 *   work MILLISECONDS SPINS        posts likewise for so long, and works so much after each post; answers how many
 *                                  posts that were, and CPU and wall nanoseconds. They are not tallied
 *   pace MILLISECONDS RATE         posts likewise, RATE times a second, and sleeps in between
 *   begin work|pace ...            the same in a thread, the answer is that of ``finish``
 *   counts                         what was tallied since the start
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "provider.h"
#include "workload.h"

#define MAX_THREADS 64

static struct world world = { .chain_limit = UINT32_MAX, .list_limit = UINT32_MAX };
static struct tally total;

struct worker {
	pthread_t thread;
	struct tally tally;
	uint64_t seed;
	uint32_t posts;
};

static pthread_barrier_t start;

static void *work(void *argument)
{
	struct worker *worker = argument;

	pthread_barrier_wait(&start);
	post_mixed(&world, &worker->tally, worker->seed, worker->posts);
	return NULL;
}

static void mixed(uint64_t seed, unsigned int threads, uint32_t posts)
{
	static struct worker workers[MAX_THREADS];

	pthread_barrier_init(&start, NULL, threads);
	for (unsigned int i = 0; i < threads; i++) {
		workers[i] = (struct worker){ .seed = seed * MAX_THREADS + i + 1, .posts = posts };
		if (pthread_create(&workers[i].thread, NULL, work, &workers[i]))
			abort();
	}
	for (unsigned int i = 0; i < threads; i++) {
		pthread_join(workers[i].thread, NULL);
		tally_merge(&total, &workers[i].tally);
		tally_free(&workers[i].tally);
	}
	pthread_barrier_destroy(&start);
}

static void bad_post(const char *where, struct ibv_qp *qp)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	char *memory = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	/* The last readable bytes before the hole: a list of six elements of which two are there. */
	struct ibv_sge *edge = (struct ibv_sge *)(memory + page) - 2;
	char *hole = memory + page;
	struct ibv_sge sge = { .length = 100 };
	struct ibv_send_wr wr = { .sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_SEND }, *bad;

	edge[0].length = edge[1].length = 100;
	mprotect(hole, page, PROT_NONE);
	if (!strcmp(where, "qp")) /* past ibv_post_send, which would look into it */
		post_send((struct ibv_qp *)hole, &wr, &bad);
	else if (!strcmp(where, "wr"))
		ibv_post_send(qp, (struct ibv_send_wr *)hole, &bad);
	else {
		if (!strcmp(where, "next"))
			wr.next = (struct ibv_send_wr *)hole;
		else if (!strcmp(where, "sge"))
			wr.sg_list = (struct ibv_sge *)hole;
		else
			wr.sg_list = edge, wr.num_sge = 6;
		ibv_post_send(qp, &wr, &bad);
	}
	munmap(memory, 2 * page);
}

static uint64_t nanoseconds(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void measure(uint32_t calls)
{
	struct ibv_sge sge = { .addr = 4096, .length = 65536, .lkey = 1 };
	struct ibv_send_wr wr = { .sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE,
				  .send_flags = IBV_SEND_SIGNALED }, *bad;
	uint64_t cpu = nanoseconds(CLOCK_THREAD_CPUTIME_ID), wall = nanoseconds(CLOCK_MONOTONIC);

	for (uint32_t i = 0; i < calls; i++)
		ibv_post_send(&world.qps[0].qp_base, &wr, &bad);
	wall = nanoseconds(CLOCK_MONOTONIC) - wall;
	cpu = nanoseconds(CLOCK_THREAD_CPUTIME_ID) - cpu;
	printf("{\"cpu\":%" PRIu64 ",\"wall\":%" PRIu64 "}\n", cpu, wall);
}

static void measure_polls(uint32_t calls)
{
	struct ibv_cq *cq = world.qps[0].qp_base.send_cq;
	uint64_t cpu = nanoseconds(CLOCK_THREAD_CPUTIME_ID), wall = nanoseconds(CLOCK_MONOTONIC);
	struct ibv_wc wc[16];

	for (uint32_t i = 0; i < calls; i++)
		ibv_poll_cq(cq, 16, wc);
	wall = nanoseconds(CLOCK_MONOTONIC) - wall;
	cpu = nanoseconds(CLOCK_THREAD_CPUTIME_ID) - cpu;
	printf("{\"cpu\":%" PRIu64 ",\"wall\":%" PRIu64 "}\n", cpu, wall);
}

static uint64_t drain(struct ibv_cq *cq)
{
	struct ibv_wc wc[16];
	uint64_t all = 0;
	int found;

	while ((found = ibv_poll_cq(cq, 16, wc)) > 0)
		all += (uint64_t)found;
	return all;
}

static void *post_steadily(void *argument)
{
	struct worker *worker = argument;
	struct ibv_sge sge = { .addr = 4096, .length = 1000, .lkey = 1 };
	struct ibv_send_wr *bad;

	pthread_barrier_wait(&start);
	for (uint32_t i = 0; i < worker->posts; i++) {
		struct ibv_send_wr wr = { .wr_id = worker->seed << 32 | i, .sg_list = &sge, .num_sge = 1,
					  .opcode = IBV_WR_RDMA_WRITE, .send_flags = IBV_SEND_SIGNALED };

		ibv_post_send(&world.qps[i % (uint32_t)world.qp_count].qp_base, &wr, &bad);
	}
	return NULL;
}

/* Answers how many were polled, which is how many were posted. */
static uint64_t steady(uint64_t seed, unsigned int threads, uint32_t posts)
{
	static struct worker workers[MAX_THREADS];
	struct ibv_cq *cq = world.qps[0].qp_base.send_cq;
	uint64_t polled = 0;

	pthread_barrier_init(&start, NULL, threads);
	for (unsigned int i = 0; i < threads; i++) {
		workers[i] = (struct worker){ .seed = seed * MAX_THREADS + i + 1, .posts = posts };
		if (pthread_create(&workers[i].thread, NULL, post_steadily, &workers[i]))
			abort();
	}
	while (polled < (uint64_t)threads * posts)
		polled += drain(cq);
	for (unsigned int i = 0; i < threads; i++)
		pthread_join(workers[i].thread, NULL);
	pthread_barrier_destroy(&start);
	return polled;
}

/* What is to be posted, and for how long. */
struct job {
	int paced;
	uint32_t milliseconds, much;
	uint64_t posts, cpu, wall;
	pthread_t thread;
};
static struct job job;

static void *run_job(void *argument)
{
	struct job *running = argument;
	struct ibv_sge sge = { .addr = 4096, .length = 65536, .lkey = 1 };
	struct ibv_send_wr wr = { .sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE }, *bad;
	uint64_t cpu = nanoseconds(CLOCK_THREAD_CPUTIME_ID), wall = nanoseconds(CLOCK_MONOTONIC), now = wall;
	uint64_t end = wall + running->milliseconds * 1000000ull;

	running->posts = 0;
	while (now < end) {
		uint64_t due = running->paced ? (now - wall) * running->much / 1000000000u : running->posts + 256;

		for (; running->posts < due; running->posts++) {
			ibv_post_send(&world.qps[0].qp_base, &wr, &bad);
			if (!running->paced)
				for (volatile uint32_t i = 0; i < running->much; i++)
					;
		}
		if (running->paced)
			usleep(1000);
		now = nanoseconds(CLOCK_MONOTONIC);
	}
	running->wall = nanoseconds(CLOCK_MONOTONIC) - wall;
	running->cpu = nanoseconds(CLOCK_THREAD_CPUTIME_ID) - cpu;
	return NULL;
}

static int print_job(void)
{
	return printf("{\"posts\":%" PRIu64 ",\"cpu\":%" PRIu64 ",\"wall\":%" PRIu64 "}\n", job.posts, job.cpu,
		      job.wall);
}

static int make_handle(int global, unsigned int last)
{
	struct ibv_ah_attr attr = { .is_global = (uint8_t)global, .port_num = 1 };
	struct ibv_pd pd = { .context = world.contexts[0] };

	attr.grh.dgid.raw[0] = 0xfe;
	attr.grh.dgid.raw[1] = 0x80;
	attr.grh.dgid.raw[14] = (uint8_t)(last >> 8);
	attr.grh.dgid.raw[15] = (uint8_t)last;
	world.handles[world.handle_count] = create_ah(&pd, &attr);
	return world.handles[world.handle_count] ? ++world.handle_count : world.handle_count;
}

static int obey(char *line)
{
	struct shape shape = { .handle = -1 };
	unsigned int queue, times, chain, a, b;
	uint64_t seed;
	char word[64], path[256];

	if (sscanf(line, "limits %u %u", &a, &b) == 2) {
		world.chain_limit = a;
		world.list_limit = b;
	} else if (sscanf(line, "device %63s", word) == 1) {
		strcpy(world.devices[world.device_count++].name, word);
	} else if (sscanf(line, "context %u", &a) == 1) {
		struct ibv_context *context = stand_in_open(&world.devices[a]);

		world.contexts[world.context_count++] = context;
		return printf("%" PRIuPTR "\n", (uintptr_t)context);
	} else if (sscanf(line, "uverbs %u %255s", &a, path) == 2) {
		world.contexts[a]->cmd_fd = open(path, O_RDWR | O_CLOEXEC);
		if (world.contexts[a]->cmd_fd < 0)
			return 0;
	} else if (sscanf(line, "forge %u", &a) == 1) {
		world.contexts[a]->ops.post_send = (void *)((char *)post_send + 1);
	} else if (sscanf(line, "qp %u %u %u", &queue, &a, &b) == 3) {
		world.cqs[queue].context = world.contexts[queue];
		world.qps[world.qp_count++].qp_base =
			(struct ibv_qp){ .context = world.contexts[queue], .send_cq = &world.cqs[queue],
					 .recv_cq = &world.cqs[queue], .qp_num = a, .qp_type = b };
	} else if (sscanf(line, "extend %u", &queue) == 1) {
		stand_in_extend(&world.qps[queue]);
		world.extended[world.extended_count++] = (int)queue;
		return printf("%d\n", ibv_qp_to_qp_ex(&world.qps[queue].qp_base) == &world.qps[queue]);
	} else if (sscanf(line, "batch %u %u %u %u %u %u %u %d %u %u %u", &queue, &times, &chain, &shape.opcode,
			  &shape.flags, &shape.sges, &shape.length, &shape.handle, &shape.peer_qpn, &a,
			  &b) == 11) {
		while (times--)
			post_batch(&world, &total, (int)queue, chain, &shape, a, (int)b);
	} else if (sscanf(line, "srq %u %u", &queue, &a) == 2) {
		world.srqs[world.srq_count++] = (struct ibv_srq){ .context = world.contexts[queue],
								  .handle = a };
	} else if (sscanf(line, "ah %u %u", &a, &b) == 2) {
		return printf("%d\n", make_handle((int)a, b));
	} else if (!strcmp(line, "rewind")) {
		stand_in_next_handle = 0;
	} else if (sscanf(line, "send %u %u %u %u %u %u %u %d %u", &queue, &times, &chain, &shape.opcode,
			  &shape.flags, &shape.sges, &shape.length, &shape.handle, &shape.peer_qpn) == 9) {
		while (times--)
			post_sends(&world, &total, (int)queue, chain, &shape);
	} else if (sscanf(line, "recv %u %u %u %u %u", &queue, &times, &chain, &shape.sges, &shape.length) == 5) {
		while (times--)
			post_recvs(&world, &total, (int)queue, chain, &shape);
	} else if (sscanf(line, "shared %u %u %u %u %u", &queue, &times, &chain, &shape.sges,
			  &shape.length) == 5) {
		while (times--)
			post_shared(&world, &total, (int)queue, chain, &shape);
	} else if (sscanf(line, "mixed %" SCNu64 " %u %u", &seed, &a, &b) == 3 && a <= MAX_THREADS) {
		mixed(seed, a, b);
	} else if (sscanf(line, "fail %d %u", &stand_in_error, &stand_in_accepts) == 2) {
	} else if (sscanf(line, "bad %63s %u", word, &queue) == 2) {
		bad_post(word, &world.qps[queue].qp_base);
	} else if (sscanf(line, "completes %d", &stand_in_completes) == 1) {
	} else if (sscanf(line, "complete %u %" SCNu64 " %u %u %u %u", &queue, &seed, &a, &b, &times,
			  &chain) == 6) {
		stand_in_complete(&(struct ibv_wc){ .wr_id = seed, .status = a, .opcode = b, .byte_len = times,
						   .wc_flags = chain, .qp_num = world.qps[queue].qp_base.qp_num });
	} else if (sscanf(line, "reset %u", &queue) == 1) {
		struct ibv_qp_attr attr = { .qp_state = IBV_QPS_RESET };

		ibv_modify_qp(&world.qps[queue].qp_base, &attr, IBV_QP_STATE);
	} else if (sscanf(line, "poll %u %u %u", &queue, &a, &times) == 3 && a <= 1024) {
		static struct ibv_wc wc[1024];
		int all = 0;

		while (times--)
			all += ibv_poll_cq(world.qps[queue].qp_base.send_cq, (int)a, wc);
		return printf("%d\n", all);
	} else if (sscanf(line, "drain %u", &queue) == 1) {
		return printf("%" PRIu64 "\n", drain(world.qps[queue].qp_base.send_cq));
	} else if (sscanf(line, "steady %" SCNu64 " %u %u", &seed, &a, &b) == 3 && a <= MAX_THREADS) {
		return printf("%" PRIu64 "\n", steady(seed, a, b));
	} else if (sscanf(line, "polls %u", &a) == 1) {
		measure_polls(a);
		return 1;
	} else if (sscanf(line, "time %u", &a) == 1) {
		measure(a);
		return 1;
	} else if (sscanf(line, "work %u %u", &job.milliseconds, &job.much) == 2) {
		job.paced = 0;
		run_job(&job);
		return print_job();
	} else if (sscanf(line, "pace %u %u", &job.milliseconds, &job.much) == 2) {
		job.paced = 1;
		run_job(&job);
		return print_job();
	} else if (sscanf(line, "begin %63s %u %u", word, &job.milliseconds, &job.much) == 3) {
		job.paced = !strcmp(word, "pace");
		if (pthread_create(&job.thread, NULL, run_job, &job))
			return 0;
	} else if (!strcmp(line, "finish")) {
		pthread_join(job.thread, NULL);
		return print_job();
	} else if (!strcmp(line, "counts")) {
		tally_print(&total);
		return 1;
	} else {
		fprintf(stderr, "not understood: %s\n", line);
		return 0;
	}
	return puts("true");
}

int main(void)
{
	char line[512];

	/* On the heap, where applications and libraries have them. */
	world.qps = calloc(MAX_QUEUES, sizeof(*world.qps));
	if (!world.qps)
		return 1;
	while (fgets(line, sizeof(line), stdin)) {
		line[strcspn(line, "\n")] = 0;
		if (!obey(line))
			return 2;
		fflush(stdout);
	}
	return 0;
}
