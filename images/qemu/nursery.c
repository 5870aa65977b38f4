/*
 * A machine that stands still, kept to be born again: each child has its memory, its state and all code that was translated,
 * copied when somebody writes to it.
 *
 * Part of iii's own QEMU. Its other half is vmm/vmm-qemu/src/nursery.rs, whose requests these are:
 *
 *   x-nursery {listener, leash, wires, births}
 *                                        this process forks; the fork is the nursery
 *   a connection to the listener         a request: the process id of who asks (4 bytes), and descriptors: the leash of the
 *   (SOCK_SEQPACKET)                     child, then one for each of `wires`, in that order
 *     -> 'c', sent by the child          its process id comes with it, from the kernel
 *     -> a wait status (int)             when it has ended
 *   the monitor among the wires          the child's answer to x-nursery
 *
 * A leash is a pipe that nothing is ever written to. When that of a child closes, the kernel kills it. When that of the
 * nursery closes, when all births were had, or nobody asked for IDLE_LIMIT_MS, it takes no more requests, forgets the
 * machine's memory, and ends with its last child.
 *
 * Copyright (c) 2026 the authors of iii
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "block/aio.h"
#include "block/block.h"
#include "block/thread-pool.h"
#include "exec/cpu-common.h"
#include "exec/ramlist.h"
#include "hw/core/cpu.h"
#include "monitor/monitor.h"
#include "net/net.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-misc.h"
#include "qemu/main-loop.h"
#include "qemu/rcu.h"
#include "sysemu/cpus.h"
#include "sysemu/runstate.h"
#include "sysemu/tcg.h"
#include "tcg/tcg.h"

#define MAX_WIRES 8
/* Somebody who has connected sends at once. */
#define REQUEST_LIMIT_S 10
#define IDLE_LIMIT_MS (10 * 60 * 1000)

typedef struct Child {
    pid_t pid;
    int pidfd;
    int connection;
} Child;

typedef struct Nursery {
    int listener;
    int leash;
    int64_t births;
    size_t wire_count;
    int wires[MAX_WIRES];
    /* Of the source's wires: a child's are like them. */
    bool nonblocking[MAX_WIRES];
    char name[16];
    /* Of Child. */
    GArray *children;
} Nursery;

static int let_inherit(RAMBlock *block, void *opaque)
{
    if (qemu_ram_is_shared(block)) {
        return -1;
    }
    return madvise(qemu_ram_get_host_addr(block),
                   qemu_ram_get_max_length(block), MADV_DOFORK);
}

static int forget(RAMBlock *block, void *opaque)
{
    return madvise(qemu_ram_get_host_addr(block),
                   qemu_ram_get_max_length(block), MADV_DONTNEED);
}

/* Ends the process if it cannot. */
static void put(int fd, int number)
{
    if (fd < 0 || dup3(fd, number, O_CLOEXEC) < 0) {
        _exit(1);
    }
}

/* What is told to one process by an event must not be heard by another. */
static void renew_events(void)
{
    char path[64], target[64];
    struct dirent *entry;
    DIR *folder = opendir("/proc/self/fd");

    if (!folder) {
        _exit(1);
    }
    while ((entry = readdir(folder))) {
        int number = atoi(entry->d_name), fd;
        ssize_t length;

        snprintf(path, sizeof(path), "/proc/self/fd/%d", number);
        length = readlink(path, target, sizeof(target) - 1);
        if (length < 0) {
            continue;
        }
        target[length] = 0;
        if (strcmp(target, "anon_inode:[eventfd]") == 0) {
            /* A spurious wake-up is harmless. */
            fd = eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC);
            put(fd, number);
            close(fd);
        }
    }
    closedir(folder);
}

/* The one thread that was forked is the main loop's; the processors' are made anew. */
static void renew_threads(void)
{
    CPUState *cpu;

    tcg_threads_forked();
    CPU_FOREACH(cpu) {
        cpu->created = false;
        cpu->thread_kicked = false;
        cpus_get_accel()->create_vcpu_thread(cpu);
        cpu_await_thread(cpu);
    }
}

/* 0 with `count` descriptors in `fds`, or -1. */
static int receive(int connection, int *fds, size_t count, pid_t *supervisor)
{
    char room[CMSG_SPACE(sizeof(int) * (MAX_WIRES + 1))];
    int32_t pid = 0;
    struct iovec iov = { .iov_base = &pid, .iov_len = sizeof(pid) };
    struct msghdr message = {
        .msg_iov = &iov, .msg_iovlen = 1,
        /* Not all of the room, which has a place more than `fds`. */
        .msg_control = room,
        .msg_controllen = CMSG_LEN(sizeof(int) * (MAX_WIRES + 1)),
    };
    struct timeval limit = { .tv_sec = REQUEST_LIMIT_S };
    struct cmsghdr *part;
    size_t found = 0;
    ssize_t size;

    if (setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit))) {
        return -1;
    }
    do {
        size = recvmsg(connection, &message, MSG_CMSG_CLOEXEC);
    } while (size < 0 && errno == EINTR);
    if (size < 0) {
        return -1;
    }
    part = CMSG_FIRSTHDR(&message);
    if (part && part->cmsg_level == SOL_SOCKET && part->cmsg_type == SCM_RIGHTS) {
        found = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        memcpy(fds, CMSG_DATA(part), found * sizeof(int));
    }
    if (size != sizeof(pid) || found != count || (message.msg_flags & MSG_CTRUNC)) {
        while (found > 0) {
            close(fds[--found]);
        }
        return -1;
    }
    *supervisor = pid;
    return 0;
}

/* In the child: a machine of its own, that stands still as its source did. */
static void become_child(Nursery *nursery, int connection, const int *fds,
                         pid_t supervisor)
{
    struct pollfd leash = { .fd = fds[0], .events = POLLIN };
    size_t i;

    /* The kernel's work, whatever this process is at. */
    if (fcntl(leash.fd, F_SETOWN, getpid()) || fcntl(leash.fd, F_SETSIG, SIGKILL)
        || fcntl(leash.fd, F_SETFL, O_ASYNC | O_NONBLOCK)
        || poll(&leash, 1, 0) != 0) {
        _exit(1);
    }
    close(nursery->listener);
    if (nursery->leash >= 0) {
        close(nursery->leash);
    }
    for (i = 0; i < nursery->children->len; i++) {
        Child *sibling = &g_array_index(nursery->children, Child, i);
        close(sibling->pidfd);
        close(sibling->connection);
    }
    for (i = 0; i < nursery->wire_count; i++) {
        int flags = fcntl(fds[i + 1], F_GETFL);

        flags = nursery->nonblocking[i] ? flags | O_NONBLOCK : flags & ~O_NONBLOCK;
        if (fcntl(fds[i + 1], F_SETFL, flags)) {
            _exit(1);
        }
        put(fds[i + 1], nursery->wires[i]);
        close(fds[i + 1]);
    }
    /* Where the kernel asks for it: who takes a snapshot of this machine reads its memory. */
    prctl(PR_SET_PTRACER, supervisor, 0, 0, 0);
    prctl(PR_SET_NAME, nursery->name, 0, 0, 0);
    signal(SIGCHLD, SIG_IGN);
    if (send(connection, "c", 1, MSG_NOSIGNAL) != 1) {
        _exit(1);
    }
    close(connection);
    g_array_free(nursery->children, true);
    rcu_disable_atfork();
    renew_events();
    renew_threads();
    net_stream_renew();
}

/* Returns in a child only. */
static bool give_birth(Nursery *nursery)
{
    int fds[MAX_WIRES + 1];
    size_t count = nursery->wire_count + 1, i;
    pid_t supervisor;
    Child child = { .connection = accept4(nursery->listener, NULL, NULL, SOCK_CLOEXEC) };

    if (child.connection < 0) {
        if (errno != EINTR && errno != ECONNABORTED && errno != EAGAIN) {
            nursery->births = 0;
        }
        return false;
    }
    if (receive(child.connection, fds, count, &supervisor)) {
        close(child.connection);
        return false;
    }
    child.pid = fork();
    if (child.pid == 0) {
        become_child(nursery, child.connection, fds, supervisor);
        return true;
    }
    for (i = 0; i < count; i++) {
        close(fds[i]);
    }
    child.pidfd = child.pid < 0 ? -1 : syscall(SYS_pidfd_open, child.pid, 0);
    if (child.pidfd < 0) {
        if (child.pid > 0) {
            kill(child.pid, SIGKILL);
            waitpid(child.pid, NULL, 0);
        }
        close(child.connection);
        return false;
    }
    g_array_append_val(nursery->children, child);
    nursery->births--;
    return false;
}

static void bury(Nursery *nursery, size_t number)
{
    Child *child = &g_array_index(nursery->children, Child, number);
    int status = 0;

    if (waitpid(child->pid, &status, 0) == child->pid) {
        ssize_t sent = send(child->connection, &status, sizeof(status),
                            MSG_NOSIGNAL | MSG_DONTWAIT);
        (void)sent;
    }
    close(child->connection);
    close(child->pidfd);
    g_array_remove_index_fast(nursery->children, number);
}

/* No more births. */
static void retire(Nursery *nursery)
{
    if (nursery->leash < 0) {
        return;
    }
    close(nursery->leash);
    close(nursery->listener);
    nursery->leash = -1;
    /* Pages that its children have replaced would be kept by nobody else. */
    qemu_ram_foreach_block(forget, NULL);
}

/* Returns in a child only. */
static void serve(Nursery *nursery)
{
    g_autoptr(GArray) polled = g_array_new(false, true, sizeof(struct pollfd));

    while (nursery->leash >= 0 || nursery->children->len > 0) {
        struct pollfd *entries;
        size_t i;
        int found;

        g_array_set_size(polled, nursery->children->len + 2);
        entries = (struct pollfd *)polled->data;
        entries[0] = (struct pollfd) { .fd = nursery->leash, .events = POLLIN };
        entries[1] = (struct pollfd) {
            .fd = nursery->leash < 0 ? -1 : nursery->listener, .events = POLLIN };
        for (i = 0; i < nursery->children->len; i++) {
            int fd = g_array_index(nursery->children, Child, i).pidfd;
            entries[i + 2] = (struct pollfd) { .fd = fd, .events = POLLIN };
        }
        found = poll(entries, polled->len, nursery->leash < 0 ? -1 : IDLE_LIMIT_MS);
        if (found < 0 && errno != EINTR) {
            _exit(1);
        }
        /* From the end: what is removed is replaced by the last. */
        for (i = nursery->children->len; i > 0; i--) {
            if (entries[i + 1].revents) {
                bury(nursery, i - 1);
            }
        }
        if (entries[1].revents && give_birth(nursery)) {
            return;
        }
        if (found == 0 || entries[0].revents || nursery->births <= 0) {
            retire(nursery);
        }
    }
    _exit(0);
}

/* A peer that broke the rules has lost its wire; the number may be another's since. */
static bool is_whole(const Nursery *nursery, int wire)
{
    struct stat about;

    if (wire == nursery->listener || wire == nursery->leash || fstat(wire, &about)) {
        return false;
    }
    return wire <= STDERR_FILENO || S_ISSOCK(about.st_mode);
}

void qmp_x_nursery(const char *listener, const char *leash, intList *wires,
                   int64_t births, Error **errp)
{
    Nursery nursery = { .listener = -1, .leash = -1, .births = births };
    AioContext *context = qemu_get_aio_context();
    pid_t pid;
    size_t i;
    int probe;

    for (; wires; wires = wires->next) {
        if (nursery.wire_count == MAX_WIRES || wires->value < 0
            || wires->value > INT_MAX) {
            error_setg(errp, "not these wires");
            return;
        }
        i = nursery.wire_count++;
        nursery.wires[i] = wires->value;
        nursery.nonblocking[i] = fcntl(nursery.wires[i], F_GETFL) & O_NONBLOCK;
    }
    if (!tcg_enabled()) {
        error_setg(errp, "only an emulated processor can be forked");
        return;
    }
    if (runstate_is_running()) {
        error_setg(errp, "the machine runs");
        return;
    }
    nursery.listener = monitor_get_fd(monitor_cur(), listener, errp);
    if (nursery.listener < 0) {
        return;
    }
    nursery.leash = monitor_get_fd(monitor_cur(), leash, errp);
    if (nursery.leash < 0) {
        goto out;
    }
    for (i = 0; i < nursery.wire_count; i++) {
        if (!is_whole(&nursery, nursery.wires[i])) {
            error_setg(errp, "%d is no wire any more", nursery.wires[i]);
            goto out;
        }
    }
    probe = syscall(SYS_pidfd_open, getpid(), 0);
    if (probe < 0) {
        error_setg_errno(errp, errno, "processes cannot be watched here");
        goto out;
    }
    close(probe);
    bdrv_drain_all();
    if (qemu_ram_foreach_block(let_inherit, NULL)) {
        error_setg(errp, "its memory cannot be inherited");
        goto out;
    }
    /* Threads that wait for work; the next work begins others. */
    thread_pool_free(context->thread_pool);
    context->thread_pool = NULL;

    /* Nobody here waits for it. */
    signal(SIGCHLD, SIG_IGN);
    rcu_enable_atfork();
    pid = fork();
    if (pid != 0) {
        rcu_disable_atfork();
        if (pid < 0) {
            error_setg_errno(errp, errno, "cannot fork");
        }
        goto out;
    }

    /* Its source's ends are seen to close when the source closes them. */
    {
        int null = open("/dev/null", O_RDWR | O_CLOEXEC);
        for (i = 0; i < nursery.wire_count; i++) {
            put(null, nursery.wires[i]);
        }
        close(null);
    }
    signal(SIGCHLD, SIG_DFL);
    prctl(PR_GET_NAME, nursery.name, 0, 0, 0);
    /* By which iii-daemon knows it when its source is gone. */
    prctl(PR_SET_NAME, "iii-nursery", 0, 0, 0);
    nursery.children = g_array_new(false, true, sizeof(Child));
    serve(&nursery);
    /* A child: the answer goes to the monitor that it was given. */
    return;

out:
    close(nursery.listener);
    if (nursery.leash >= 0) {
        close(nursery.leash);
    }
}
