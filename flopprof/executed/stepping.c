/* Count how often each instruction of one thread is executed, by the x86 trap flag (Linux).

   While the flag is set the processor traps after every instruction. The handler then sees the
   address of the next one, and counts it in a table of fixed size. It calls nothing that allocates.
   Compiled and loaded by stepping.py. */

#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define SLOTS (1u << 17) /* distinct addresses at most; a power of two */
#define TRAP_FLAG 0x100ull

struct slot {
    uint64_t address; /* 0: free */
    uint64_t count;
    uint64_t tile_products; /* of an AMX product: rows × columns × depth, added up */
};

static struct slot table[SLOTS];
static volatile uint64_t executed;  /* instructions in all */
static volatile uint64_t most;      /* where stepping ends by itself */
static volatile uint64_t distinct;  /* slots that are taken */
static volatile int stopped;        /* 1: `most` was reached; 2: table full; 3: interrupted */
static volatile int is_stepping;
static pid_t owner;
static struct sigaction before;
static uint32_t tile_offset; /* of the sizes of AMX tiles in the saved state; 0 without AMX */

/* Python acts on a signal when the call that is stepped comes back. So that this is soon, stepping
   ends at the signal; then it is handled as before. */
#define SIGNALS 2
static const int interrupts[SIGNALS] = {SIGINT, SIGTERM};
static struct sigaction before_interrupt[SIGNALS];

static void on_interrupt(int signal, siginfo_t *info, void *context) {
    const struct sigaction *then = &before_interrupt[signal == SIGTERM];
    stopped = 3;
    if (then->sa_flags & SA_SIGINFO) {
        then->sa_sigaction(signal, info, context);
    } else if (then->sa_handler == SIG_DFL) {
        sigaction(signal, then, 0);
        kill(getpid(), signal);
    } else if (then->sa_handler != SIG_IGN) {
        then->sa_handler(signal);
    }
}

/* A thread that blocks SIGTRAP while it is stepped is killed by the system. Where the next
   instruction is a system call that would block it, the call gets a copy of its set without it. */
static uint64_t open_set;
static uint64_t set_argument;
static int is_set_replaced;

static void keep_trap_open(greg_t *registers) {
    const unsigned char *code = (const unsigned char *)registers[REG_RIP];
    if (is_set_replaced) { /* the call is done: its register has what it had */
        registers[REG_RSI] = (greg_t)set_argument;
        is_set_replaced = 0;
    }
    if (code[0] != 0x0f || code[1] != 0x05 || registers[REG_RAX] != SYS_rt_sigprocmask) return;
    if (registers[REG_RSI] == 0 || registers[REG_RDI] == SIG_UNBLOCK) return;
    open_set = *(const uint64_t *)registers[REG_RSI] & ~(1ull << (SIGTRAP - 1));
    set_argument = (uint64_t)registers[REG_RSI];
    registers[REG_RSI] = (greg_t)&open_set;
    is_set_replaced = 1;
}

/* Return rows × columns × depth of the AMX product that is next, depth in groups of 4 bytes; 0 for
   another instruction, or where the sizes of tiles are not known. Which sizes the tiles have is in
   what the system saved of the processor's state (Intel's manual, volume 1, chapters 13 and 18). */
static uint64_t tile_products(const ucontext_t *context) {
    const unsigned char *code = (const unsigned char *)context->uc_mcontext.gregs[REG_RIP];
    const unsigned char *state = (const unsigned char *)context->uc_mcontext.fpregs;
    if (code[0] != 0xc4 || (code[1] & 31) != 2 || (code[3] != 0x5c && code[3] != 0x5e)) return 0;
    if (state == 0 || tile_offset == 0) return 0;
    uint32_t magic;
    uint64_t present;
    memcpy(&magic, state + 464, sizeof magic);
    memcpy(&present, state + 512, sizeof present);
    if (magic != 0x46505853u || !(present >> 17 & 1)) return 0;
    const unsigned char *sizes = state + tile_offset; /* 16: bytes of a row; 48: rows */
    unsigned result = code[4] >> 3 & 7;
    unsigned left = code[4] & 7;
    uint16_t columns_bytes;
    uint16_t depth_bytes;
    memcpy(&columns_bytes, sizes + 16 + 2 * result, sizeof columns_bytes);
    memcpy(&depth_bytes, sizes + 16 + 2 * left, sizeof depth_bytes);
    return (uint64_t)sizes[48 + result] * (columns_bytes / 4) * (depth_bytes / 4);
}

static void on_trap(int signal, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    (void)signal;
    (void)info;
    if (!is_stepping || (pid_t)syscall(SYS_gettid) != owner) { /* a thread begun by the owner */
        registers[REG_EFL] &= ~(greg_t)TRAP_FLAG;
        return;
    }
    uint64_t address = (uint64_t)registers[REG_RIP];
    uint64_t place = (address * 0x9e3779b97f4a7c15ull) >> (64 - 17);
    while (table[place].address != address && table[place].address != 0) {
        place = (place + 1) & (SLOTS - 1);
    }
    if (table[place].address == 0) {
        table[place].address = address;
        distinct++;
    }
    table[place].count++;
    table[place].tile_products += tile_products(context);
    executed++;
    keep_trap_open(registers);
    if (executed >= most) stopped = 1;
    if (distinct > SLOTS / 2) stopped = 2;
    if (stopped && !is_set_replaced) registers[REG_EFL] &= ~(greg_t)TRAP_FLAG;
}

/* Begin to step the calling thread. Returns 0, or -1 where the handler cannot be set. */
int step_begin(uint64_t at_most) {
    struct sigaction action;
    unsigned size, offset, flags, unused;
    tile_offset = 0;
    if (__get_cpuid_count(0xd, 17, &size, &offset, &flags, &unused) && size >= 64) tile_offset = offset;
    memset(table, 0, sizeof table);
    executed = 0;
    distinct = 0;
    stopped = 0;
    is_set_replaced = 0;
    most = at_most;
    owner = (pid_t)syscall(SYS_gettid);
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_trap;
    action.sa_flags = SA_SIGINFO | SA_RESTART;
    sigemptyset(&action.sa_mask);
    if (sigaction(SIGTRAP, &action, &before) != 0) return -1;
    action.sa_sigaction = on_interrupt;
    for (int i = 0; i < SIGNALS; i++) sigaction(interrupts[i], &action, &before_interrupt[i]);
    is_stepping = 1;
    __asm__ volatile("lea -128(%%rsp), %%rsp\n\t" /* below it is the red zone */
                     "pushfq\n\t"
                     "orq $0x100, (%%rsp)\n\t"
                     "popfq\n\t"
                     "lea 128(%%rsp), %%rsp" ::: "memory", "cc");
    return 0;
}

/* Stop stepping for now: what follows runs at full speed, uncounted. */
void step_pause(void) {
    __asm__ volatile("lea -128(%%rsp), %%rsp\n\t"
                     "pushfq\n\t"
                     "andq $~0x100, (%%rsp)\n\t"
                     "popfq\n\t"
                     "lea 128(%%rsp), %%rsp" ::: "memory", "cc");
}

/* Go on stepping after a pause, if it has not ended by itself; in another thread it does nothing. */
void step_resume(void) {
    if (!is_stepping || stopped || (pid_t)syscall(SYS_gettid) != owner) return;
    __asm__ volatile("lea -128(%%rsp), %%rsp\n\t"
                     "pushfq\n\t"
                     "orq $0x100, (%%rsp)\n\t"
                     "popfq\n\t"
                     "lea 128(%%rsp), %%rsp" ::: "memory", "cc");
}

/* End it: flag and handler are as before. Returns why it ended by itself before; 0: it did not. */
int step_end(void) {
    step_pause();
    is_stepping = 0;
    for (int i = 0; i < SIGNALS; i++) sigaction(interrupts[i], &before_interrupt[i], 0);
    sigaction(SIGTRAP, &before, 0);
    return stopped;
}

/* Write what was counted, at most `room` entries, and return how many there are. Of AMX products
   `products` gets rows × columns × depth, added up; 0 of all else. */
uint64_t step_counts(uint64_t *addresses, uint64_t *counts, uint64_t *products, uint64_t room) {
    uint64_t place;
    uint64_t entries = 0;
    for (place = 0; place < SLOTS; place++) {
        if (table[place].address == 0) continue;
        if (entries < room) {
            addresses[entries] = table[place].address;
            counts[entries] = table[place].count;
            products[entries] = table[place].tile_products;
        }
        entries++;
    }
    return entries;
}
