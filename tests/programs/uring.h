// Rings of io_uring by raw calls: made, filled, entered, read. For programs that include common.h.
#pragma once
#include <linux/io_uring.h>

#ifndef IORING_SETUP_SINGLE_ISSUER
#define IORING_SETUP_SINGLE_ISSUER (1U << 12)
#endif
#ifndef IORING_SETUP_DEFER_TASKRUN
#define IORING_SETUP_DEFER_TASKRUN (1U << 13)
#endif
#ifndef IORING_SETUP_NO_SQARRAY
#define IORING_SETUP_NO_SQARRAY (1U << 16)
#endif

struct ring {
    int fd;
    struct io_uring_params p;
    char *rings;
    struct io_uring_sqe *sqes;
    unsigned tail; // of the submission queue, as the program has it
};
static unsigned *word(struct ring *r, unsigned at) { return (unsigned *)(r->rings + at); }

static bool made(struct ring *r, unsigned entries, struct io_uring_params p) {
    unsigned flags = p.flags;
    r->p = p;
    r->fd = (int)syscall(SYS_io_uring_setup, entries, &r->p);
    if (r->fd < 0) return false;
    size_t bytes = r->p.cq_off.cqes + r->p.cq_entries * sizeof(struct io_uring_cqe), indices = r->p.sq_off.array + r->p.sq_entries * 4;
    if (!(flags & IORING_SETUP_NO_SQARRAY) && indices > bytes) bytes = indices;
    r->rings = MUST(mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r->fd, IORING_OFF_SQ_RING));
    r->sqes = MUST(mmap(NULL, r->p.sq_entries * sizeof *r->sqes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r->fd, IORING_OFF_SQES));
    if (!(flags & IORING_SETUP_NO_SQARRAY)) for (unsigned i = 0; i < r->p.sq_entries; i++) word(r, r->p.sq_off.array)[i] = r->p.sq_entries - 1 - i;
    return true;
}
static inline bool make(struct ring *r, unsigned entries, unsigned flags, unsigned completions) {
    return made(r, entries, (struct io_uring_params){.flags = flags, .cq_entries = completions});
}
// The entry at the program's tail. In the ring with indices they run backwards.
static struct io_uring_sqe *entry(struct ring *r, int op, int fd, void *at, unsigned len, uint64_t data) {
    unsigned slot = r->tail++ & (r->p.sq_entries - 1);
    struct io_uring_sqe *e = &r->sqes[r->p.flags & IORING_SETUP_NO_SQARRAY ? slot : r->p.sq_entries - 1 - slot];
    memset(e, 0, sizeof *e);
    e->opcode = (uint8_t)op, e->fd = fd, e->addr = (uintptr_t)at, e->len = len, e->user_data = data;
    e->off = (uint64_t)-1;
    if (op == IORING_OP_NOP || op == IORING_OP_TIMEOUT || op == IORING_OP_POLL_ADD) e->off = 0;
    return e;
}
static inline int enter(struct ring *r, unsigned wait) {
    unsigned n = r->tail - *word(r, r->p.sq_off.tail);
    __atomic_store_n(word(r, r->p.sq_off.tail), r->tail, __ATOMIC_RELEASE);
    return (int)syscall(SYS_io_uring_enter, r->fd, n, wait, wait ? IORING_ENTER_GETEVENTS : 0, NULL, 0);
}
// The result of the next completion, which should be of this request.
static int result_of(struct ring *r, uint64_t data) {
    unsigned *head = word(r, r->p.cq_off.head), tail = __atomic_load_n(word(r, r->p.cq_off.tail), __ATOMIC_ACQUIRE);
    if (*head == tail) {
        fail("a completion %llu, expected one, got none", (unsigned long long)data);
        return -ENOENT;
    }
    struct io_uring_cqe *c = &((struct io_uring_cqe *)(r->rings + r->p.cq_off.cqes))[*head & (r->p.cq_entries - 1)];
    CHECK_EQ(data, c->user_data, "data of the completion");
    int result = c->res;
    __atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
    return result;
}
static inline void finished(struct ring *r, uint64_t data, int result) { CHECK_EQ(result, result_of(r, data), "result of completion %llu", (unsigned long long)data); }
static inline void nothing(struct ring *r, uint64_t data) {
    entry(r, IORING_OP_NOP, -1, NULL, 0, data);
    CHECK_EQ(1, enter(r, 1), "a request taken (errno %d)", errno);
    finished(r, data, 0);
}
