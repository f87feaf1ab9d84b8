/* Stopping a vCPU from outside: a real-time signal aimed at its thread, and immediate_exit.
 * The handler sets immediate_exit through a thread-local, so a signal that lands just before
 * KVM_RUN is not lost (KVM API, 5 "immediate_exit"). */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "pykvm_native.h"

__thread struct pykvm_vcpu *pykvm_current;
static int kick_signal;

/* gettid() once per thread: a system call per exit would be dearer than the rest of the loop. */
static __thread int thread_id;

int pykvm_thread_id(void)
{
    if (!thread_id)
        thread_id = (int)syscall(SYS_gettid);
    return thread_id;
}

static void forget_thread_id(void) { thread_id = 0; }  /* the child of a fork has another */

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

static void on_signal(int signum, siginfo_t *info, void *context)
{
    struct pykvm_vcpu *v = pykvm_current;
    if (!v)
        return;
    if (info->si_code == SI_TIMER)
        v->tick = 1;
    v->run->immediate_exit = 1;
}

/* Takes `signum` unless somebody handles it; 0: the first free one from SIGRTMIN + 4. */
long pykvm_signals_init(int signum)
{
    struct sigaction old, new = {0};
    if (kick_signal && (signum == 0 || signum == kick_signal))
        return 0;
    if (signum == 0) {
        for (signum = SIGRTMIN + 4; signum < SIGRTMAX; signum++)
            if (pykvm_signals_init(signum) == 0)
                return 0;
        return -EBUSY;
    }
    if (sigaction(signum, NULL, &old) < 0)
        return -errno;
    if (old.sa_handler != SIG_DFL)
        return -EBUSY;
    new.sa_sigaction = on_signal;
    new.sa_flags = SA_SIGINFO;          /* no SA_RESTART: KVM_RUN must return */
    sigemptyset(&new.sa_mask);
    if (sigaction(signum, &new, NULL) < 0)
        return -errno;
    kick_signal = signum;
    return -pthread_atfork(NULL, NULL, forget_thread_id);
}

int pykvm_kick_signal(void) { return kick_signal; }

void pykvm_kick(struct pykvm_vcpu *v)
{
    __atomic_store_n(&v->kick, 1, __ATOMIC_SEQ_CST);
    v->run->immediate_exit = 1;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    int tid = __atomic_load_n(&v->tid, __ATOMIC_SEQ_CST);
    if (tid && kick_signal)
        syscall(SYS_tgkill, getpid(), tid, kick_signal);
}

void pykvm_unkick(struct pykvm_vcpu *v)
{
    v->kick = 0;
    v->run->immediate_exit = 0;
}

uint64_t pykvm_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Next tick: 1 ms, doubling to 32 ms, so that a guest that halts at once is noticed at once. */
long pykvm_rearm(struct pykvm_vcpu *v)
{
    uint64_t now = pykvm_now_ns(), next = 0;
    if (v->tick_ns) {
        next = now + v->tick_ns;
        if (v->tick_ns < 32000000)
            v->tick_ns *= 2;
    }
    if (v->deadline_ns && (!next || v->deadline_ns < next))
        next = v->deadline_ns > now ? v->deadline_ns : now + 1;
    struct itimerspec when = {
        .it_value = {(time_t)(next / 1000000000u), (long)(next % 1000000000u)},
        .it_interval = {0, next ? 10000000 : 0},  /* a tick that found nobody running is repeated */
    };
    return timer_settime(v->timer, TIMER_ABSTIME, &when, NULL) < 0 ? -errno : 0;
}

long pykvm_watch(struct pykvm_vcpu *v, uint64_t timeout_ns, int halt_check)
{
    int tid = pykvm_thread_id();
    if (v->timer_tid != tid) {
        if (v->timer_tid)
            timer_delete(v->timer);
        v->timer_tid = 0;
        struct sigevent event = {0};
        event.sigev_notify = SIGEV_THREAD_ID;
        event.sigev_signo = kick_signal;
        event.sigev_notify_thread_id = tid;
        if (timer_create(CLOCK_MONOTONIC, &event, &v->timer) < 0)
            return -errno;
        v->timer_tid = tid;
    }
    v->tick = 0;
    v->deadline_ns = timeout_ns ? pykvm_now_ns() + timeout_ns : 0;
    v->tick_ns = halt_check ? 1000000 : 0;
    return pykvm_rearm(v);
}

void pykvm_unwatch(struct pykvm_vcpu *v)
{
    v->deadline_ns = v->tick_ns = 0;
    if (v->timer_tid) {
        timer_delete(v->timer);
        v->timer_tid = 0;
    }
}
