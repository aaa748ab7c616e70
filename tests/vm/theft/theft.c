/* Both sides of a theft by RDMA READ, for the demo.
 *
 *   theft victim DEVICE GID_INDEX PORT WEIGHTS         registers the file's content for remote reads, and sleeps
 *   theft attacker DEVICE GID_INDEX PORT ADDRESS COPY  reads all of it into COPY
 *
 * They tell each other their queue pairs over TCP, as distributed programs do. The victim only ever receives:
 * its queue pair stays in RTR, it has no receive buffers and polls nothing. At the end each prints a line of
 * JSON; the victim's says how much CPU it used while it was read.
 */
#include <arpa/inet.h>
#include <err.h>
#include <fcntl.h>
#include <infiniband/verbs.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { CHUNK = 256 << 10, OUTSTANDING = 8 };

struct end {
    union ibv_gid gid;
    uint32_t qpn, psn, rkey, reserved;
    uint64_t address, length;
};

struct queue {
    struct ibv_context *context;
    struct ibv_pd *pd;
    struct ibv_comp_channel *channel;
    struct ibv_cq *cq;
    struct ibv_qp *qp;
    struct end end;
    int gid_index;
};

static void exactly(int fd, void *data, size_t size, int out)
{
    for (size_t done = 0; done < size;) {
        ssize_t moved = out ? write(fd, (char *)data + done, size - done) : read(fd, (char *)data + done, size - done);
        if (moved <= 0)
            err(1, out ? "write" : "read");
        done += (size_t)moved;
    }
}

static struct queue open_queue(const char *device, int gid_index)
{
    struct queue queue = {.gid_index = gid_index};
    struct ibv_device **list = ibv_get_device_list(NULL);
    for (struct ibv_device **one = list; one && *one; one++)
        if (!strcmp(ibv_get_device_name(*one), device))
            queue.context = ibv_open_device(*one);
    if (!queue.context)
        errx(1, "no RDMA device %s", device);
    if (!(queue.pd = ibv_alloc_pd(queue.context)))
        err(1, "ibv_alloc_pd");
    if (!(queue.channel = ibv_create_comp_channel(queue.context)))
        err(1, "ibv_create_comp_channel");
    if (!(queue.cq = ibv_create_cq(queue.context, 2 * OUTSTANDING, NULL, queue.channel, 0)))
        err(1, "ibv_create_cq");
    struct ibv_qp_init_attr init = {
        .send_cq = queue.cq,
        .recv_cq = queue.cq,
        .cap = {.max_send_wr = OUTSTANDING, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1},
        .qp_type = IBV_QPT_RC,
        .sq_sig_all = 1,
    };
    if (!(queue.qp = ibv_create_qp(queue.pd, &init)))
        err(1, "ibv_create_qp");
    struct ibv_qp_attr attr = {
        .qp_state = IBV_QPS_INIT, .port_num = 1, .qp_access_flags = IBV_ACCESS_REMOTE_READ};
    if (ibv_modify_qp(queue.qp, &attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS))
        err(1, "modify to INIT");
    if (ibv_query_gid(queue.context, 1, gid_index, &queue.end.gid))
        err(1, "ibv_query_gid");
    queue.end.qpn = queue.qp->qp_num;
    queue.end.psn = (uint32_t)getpid() & 0xffffff;
    return queue;
}

static void ready_to_receive(struct queue *queue, const struct end *peer)
{
    struct ibv_qp_attr attr = {
        .qp_state = IBV_QPS_RTR,
        .path_mtu = IBV_MTU_1024,
        .dest_qp_num = peer->qpn,
        .rq_psn = peer->psn,
        .max_dest_rd_atomic = 16,
        .min_rnr_timer = 12,
        .ah_attr = {.is_global = 1,
                    .port_num = 1,
                    .grh = {.dgid = peer->gid, .sgid_index = (uint8_t)queue->gid_index, .hop_limit = 64}},
    };
    if (ibv_modify_qp(queue->qp, &attr,
                      IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                          IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER))
        err(1, "modify to RTR");
}

static void ready_to_send(struct queue *queue)
{
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_RTS,
                               .timeout = 18,
                               .retry_cnt = 7,
                               .rnr_retry = 7,
                               .sq_psn = queue->end.psn,
                               .max_rd_atomic = 4};
    if (ibv_modify_qp(queue->qp, &attr,
                      IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN |
                          IBV_QP_MAX_QP_RD_ATOMIC))
        err(1, "modify to RTS");
}

/* Memory of the file, which others see change (the attacker's copy) where `shared`. */
static void *map_file(const char *path, int flags, size_t *size, int shared)
{
    int fd = open(path, flags, 0600);
    struct stat status;
    if (fd < 0 || (shared && ftruncate(fd, (off_t)*size)) || fstat(fd, &status))
        err(1, "%s", path);
    *size = (size_t)status.st_size;
    void *data = mmap(NULL, *size, PROT_READ | PROT_WRITE, shared ? MAP_SHARED : MAP_PRIVATE | MAP_POPULATE, fd, 0);
    if (data == MAP_FAILED)
        err(1, "mmap of %s", path);
    close(fd);
    return data;
}

static struct ibv_mr *register_memory(struct queue *queue, void *data, size_t size, unsigned access)
{
    struct ibv_mr *region = ibv_reg_mr(queue->pd, data, size, access);
    if (!region)
        err(1, "ibv_reg_mr of %zu bytes", size);
    return region;
}

static double cpu_ms(void)
{
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1e3 +
           (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e3;
}

static int victim(struct queue *queue, int port, const char *weights)
{
    size_t size = 0;
    void *data = map_file(weights, O_RDONLY, &size, 0);
    struct ibv_mr *region = register_memory(queue, data, size, IBV_ACCESS_REMOTE_READ);
    queue->end.rkey = region->rkey;
    queue->end.address = (uintptr_t)data;
    queue->end.length = size;
    struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
    int listener = socket(AF_INET6, SOCK_STREAM, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (bind(listener, (struct sockaddr *)&any, sizeof(any)) || listen(listener, 1))
        err(1, "port %d", port);
    int peer = accept(listener, NULL, NULL);
    struct end other;
    exactly(peer, &queue->end, sizeof(queue->end), 1);
    exactly(peer, &other, sizeof(other), 0);
    ready_to_receive(queue, &other);
    exactly(peer, (char[]){'r'}, 1, 1);
    double before = cpu_ms();
    char ignored;
    if (read(peer, &ignored, 1) != 0)
        errx(1, "the peer should only close");
    printf("{\"registered\": %zu, \"cpu_ms\": %.3f}\n", size, cpu_ms() - before);
    return 0;
}

static void post_read(struct queue *queue, struct ibv_mr *local, const struct end *peer, uint64_t at)
{
    uint64_t left = peer->length - at;
    struct ibv_sge sge = {
        .addr = (uintptr_t)local->addr + at, .length = left < CHUNK ? (uint32_t)left : CHUNK, .lkey = local->lkey};
    struct ibv_send_wr wr = {.sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_RDMA_READ}, *bad;
    wr.wr.rdma.remote_addr = peer->address + at;
    wr.wr.rdma.rkey = peer->rkey;
    if (ibv_post_send(queue->qp, &wr, &bad))
        err(1, "ibv_post_send");
}

static int attacker(struct queue *queue, int port, const char *address, const char *copy)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int peer = socket(AF_INET, SOCK_STREAM, 0);
    if (inet_pton(AF_INET, address, &to.sin_addr) != 1 || connect(peer, (struct sockaddr *)&to, sizeof(to)))
        err(1, "%s port %d", address, port);
    struct end other;
    exactly(peer, &other, sizeof(other), 0);
    exactly(peer, &queue->end, sizeof(queue->end), 1);
    size_t size = other.length;
    void *data = map_file(copy, O_RDWR | O_CREAT | O_TRUNC, &size, 1);
    struct ibv_mr *region = register_memory(queue, data, size, IBV_ACCESS_LOCAL_WRITE);
    ready_to_receive(queue, &other);
    ready_to_send(queue);
    char go;
    exactly(peer, &go, 1, 0);
    uint64_t posted = 0;
    unsigned waiting = 0, reads = 0;
    while (posted < size || waiting) {
        if (posted < size && waiting < OUTSTANDING) {
            post_read(queue, region, &other, posted);
            posted += CHUNK;
            waiting++, reads++;
            continue;
        }
        struct ibv_wc wc;
        int found = ibv_poll_cq(queue->cq, 1, &wc);
        if (found == 0) {
            /* Asked for before the last look, or the last completion could be missed. */
            if (ibv_req_notify_cq(queue->cq, 0))
                err(1, "ibv_req_notify_cq");
            found = ibv_poll_cq(queue->cq, 1, &wc);
        }
        if (found == 0) {
            struct ibv_cq *cq;
            void *context;
            if (ibv_get_cq_event(queue->channel, &cq, &context))
                err(1, "ibv_get_cq_event");
            ibv_ack_cq_events(cq, 1);
            continue;
        }
        if (found < 0 || wc.status != IBV_WC_SUCCESS)
            errx(1, "RDMA READ: %s", found < 0 ? "polling failed" : ibv_wc_status_str(wc.status));
        waiting--;
    }
    close(peer);
    printf("{\"read\": %zu, \"reads\": %u}\n", size, reads);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 6 && !strcmp(argv[1], "victim")) {
        struct queue queue = open_queue(argv[2], atoi(argv[3]));
        return victim(&queue, atoi(argv[4]), argv[5]);
    }
    if (argc == 7 && !strcmp(argv[1], "attacker")) {
        struct queue queue = open_queue(argv[2], atoi(argv[3]));
        return attacker(&queue, atoi(argv[4]), argv[5], argv[6]);
    }
    errx(2, "usage: victim DEVICE GID_INDEX PORT WEIGHTS | attacker DEVICE GID_INDEX PORT ADDRESS COPY");
}
