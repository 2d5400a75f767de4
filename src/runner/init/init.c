/*
 * The init: PID 1 of every container. Reads one job description from standard input, runs the job, and reports its end.
 *
 * docs/init.md tells the protocol and the reasons; wire.py is the other end. No libc and no kernel headers, so that the
 * same few kilobytes run in any image, even an empty one. A system call's result is the kernel's: -errno on failure.
 */
#include <stddef.h>
#include <stdint.h>

#ifndef CGROUP_ROOT /* the tests put a folder of their own in its place */
#define CGROUP_ROOT "/sys/fs/cgroup"
#endif
#ifndef GIVE_UP_MS /* how long a process may outlive SIGKILL before we leave without a report */
#define GIVE_UP_MS 30000
#endif

#ifndef STAY_MS /* how long we stay, all being told, if nobody lets us go; and how often we look for a signal meanwhile */
#define STAY_MS 10000
#endif
#define LOOK_MS 100

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the wire format is that of a little-endian machine"
#endif

/* ---- the kernel, as far as we need it ------------------------------------------------------------------------------ */

#if defined(__x86_64__)
enum {
    NR_READ = 0, NR_WRITE = 1, NR_CLOSE = 3, NR_RT_SIGACTION = 13, NR_RT_SIGPROCMASK = 14, NR_PREAD64 = 17,
    NR_GETPID = 39, NR_SOCKET = 41, NR_CLONE = 56, NR_EXECVE = 59, NR_WAIT4 = 61, NR_KILL = 62, NR_FCNTL = 72,
    NR_CHDIR = 80, NR_FCHMOD = 91, NR_SETSID = 112,
    NR_RT_SIGTIMEDWAIT = 128, NR_STATFS = 137, NR_PRCTL = 157, NR_CLOCK_GETTIME = 228, NR_EXIT_GROUP = 231,
    NR_OPENAT = 257, NR_PPOLL = 271, NR_PIPE2 = 293, NR_PRLIMIT64 = 302, NR_CLOSE_RANGE = 436,
};

/* The same machine's older kind of programs: other numbers, and one call for all that can be done with sockets. */
enum { ARCH = 0xc000003e, OTHER_ARCH = 0x40000003, OTHER_SOCKET = 359, OTHER_SOCKETCALL = 102 };

static long sys(long number, long a, long b, long c, long d, long e)
{
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory");
    return result;
}

/* The kernel starts us without a return address, which C counts on for the alignment of the stack. */
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall run\n");

#elif defined(__aarch64__)
enum {
    NR_FCNTL = 25, NR_STATFS = 43, NR_CHDIR = 49, NR_FCHMOD = 52, NR_OPENAT = 56, NR_CLOSE = 57, NR_PIPE2 = 59,
    NR_READ = 63, NR_WRITE = 64, NR_PREAD64 = 67, NR_PPOLL = 73, NR_EXIT_GROUP = 94, NR_CLOCK_GETTIME = 113,
    NR_KILL = 129, NR_RT_SIGACTION = 134,
    NR_RT_SIGPROCMASK = 135, NR_RT_SIGTIMEDWAIT = 137, NR_SETSID = 157, NR_PRCTL = 167, NR_GETPID = 172, NR_SOCKET = 198,
    NR_CLONE = 220, NR_EXECVE = 221, NR_WAIT4 = 260, NR_PRLIMIT64 = 261, NR_CLOSE_RANGE = 436,
};

enum { ARCH = 0xc00000b7, OTHER_ARCH = 0x40000028, OTHER_SOCKET = 281, OTHER_SOCKETCALL = 102 };

static long sys(long number, long a, long b, long c, long d, long e)
{
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4) : "memory");
    return x0;
}

__asm__(".globl _start\n_start:\n\tmov x29, #0\n\tmov x0, sp\n\tbl run\n");

#else
#error "the init knows x86_64 and aarch64"
#endif

enum { ENOENT = 2, ESRCH = 3, EINTR = 4, EAGAIN = 11, EACCES = 13, ENOTDIR = 20, EINVAL = 22, ENOSYS = 38,
       EAFNOSUPPORT = 97 };
enum { SIGHUP = 1, SIGINT = 2, SIGQUIT = 3, SIGKILL = 9, SIGUSR1 = 10, SIGUSR2 = 12, SIGTERM = 15, SIGCHLD = 17 };
enum { SIG_SETMASK = 2, SIGNALS = 64, POLLIN = 1, POLLOUT = 4, WNOHANG = 1 };
enum { AT_FDCWD = -100, O_WRONLY = 1, O_RDWR = 2, O_CREAT = 0100, O_EXCL = 0200, O_CLOEXEC = 02000000 };
enum { F_SETFD = 2, FD_CLOEXEC = 1, CLOSE_RANGE_CLOEXEC = 4, CLOCK_REALTIME = 0, CLOCK_MONOTONIC = 1 };
enum { PR_SET_DUMPABLE = 4, PR_SET_SECCOMP = 22, PR_SET_NO_NEW_PRIVS = 38, SECCOMP_MODE_FILTER = 2 };

struct timespec { int64_t seconds, nanoseconds; };
struct pollfd { int32_t fd; int16_t events, returned; };
struct limit { uint64_t soft, hard; };
struct statfs {
    int64_t type, block_size;
    uint64_t blocks, free, available, inodes, inodes_free;
    int64_t fsid, name_length, unit, flags, spare[4];
};

/* The compiler calls these of its own accord. The empty asm keeps it from seeing them as calls to themselves. */
void *memset(void *to, int value, size_t size)
{
    for (uint8_t *byte = to; size-- > 0; *byte++ = (uint8_t)value)
        __asm__ volatile("");
    return to;
}

void *memcpy(void *to, const void *from, size_t size) /* copies upwards: the target may lie below what it overlaps */
{
    const uint8_t *source = from;
    for (uint8_t *byte = to; size-- > 0; *byte++ = *source++)
        __asm__ volatile("");
    return to;
}

static int same(const void *one, const void *other, size_t size)
{
    const uint8_t *a = one, *b = other;
    while (size > 0 && *a == *b)
        a++, b++, size--;
    return size == 0;
}

static size_t length_of(const char *text)
{
    size_t length = 0;
    while (text[length] != 0)
        length++;
    return length;
}

static _Noreturn void leave(int code)
{
    for (;;)
        sys(NR_EXIT_GROUP, code, 0, 0, 0, 0);
}

static void close_fd(int fd)
{
    sys(NR_CLOSE, fd, 0, 0, 0, 0);
}

static uint64_t now(int clock) /* in nanoseconds */
{
    struct timespec time = {0, 0};
    sys(NR_CLOCK_GETTIME, clock, (long)&time, 0, 0, 0);
    return (uint64_t)time.seconds * 1000000000 + (uint64_t)time.nanoseconds;
}

static void wait_until_ready(int fd, int16_t events)
{
    struct pollfd poll = {fd, events, 0};
    sys(NR_PPOLL, (long)&poll, 1, 0, 0, 0);
}

/* The job shares our pipes and may have made them non-blocking, hence the poll. A pipe that nobody reads is given up. */
static int write_all(int fd, const void *data, size_t size)
{
    const uint8_t *bytes = data;
    while (size > 0) {
        long result = sys(NR_WRITE, fd, (long)bytes, (long)size, 0, 0);
        if (result > 0) {
            bytes += result;
            size -= (size_t)result;
        } else if (result == -EAGAIN) {
            wait_until_ready(fd, POLLOUT);
        } else if (result != -EINTR) {
            return 0;
        }
    }
    return 1;
}

/* Reads exactly `size` bytes, since the next one is the job's; less only at the end of the stream. */
static size_t read_exactly(int fd, void *to, size_t size)
{
    size_t done = 0;
    while (done < size) {
        long result = sys(NR_READ, fd, (long)((uint8_t *)to + done), (long)(size - done), 0, 0);
        if (result > 0)
            done += (size_t)result;
        else if (result == -EAGAIN)
            wait_until_ready(fd, POLLIN);
        else if (result != -EINTR)
            break;
    }
    return done;
}

static _Noreturn void refuse(const char *why)
{
    write_all(2, why, length_of(why));
    leave(70);
}

/* ---- the frame ----------------------------------------------------------------------------------------------------- */

enum { NONCE = 16, BODY_MAX = (1 << 20) + (384 << 10), WORDS_MAX = BODY_MAX / 5, LIMITS_MAX = 16, PLACES_MAX = 8 };
enum { SECRETS_MAX = 32 };
enum tag {
    TAG_NONCE = 1, TAG_ARGV, TAG_ENV, TAG_CWD, TAG_TIMEOUT, TAG_LIMIT, TAG_PLACE, TAG_FOLDER, TAG_SECRET, TAG_SOCKETS,
    TAG_NOT_AFTER, TAG_LEASH,
};

static struct {
    uint8_t start_nonce[NONCE], end_nonce[NONCE];
    int has_nonce, has_timeout, few_sockets, leashed;
    uint64_t timeout_ms, not_after_ms; /* the latter 0: at any time */
    const char *cwd;
    const char *folder;
    uint32_t words, variables, limits, places, secrets;
    uint32_t resource[LIMITS_MAX];
    struct limit limit[LIMITS_MAX];
    const char *place[PLACES_MAX];
    struct { const char *name; uint8_t *value; uint32_t size; } secret[SECRETS_MAX];
    const char *argv[WORDS_MAX + 1];
    const char *env[WORDS_MAX + 2]; /* one more for JOB_DEADLINE */
} job;

static uint8_t body[BODY_MAX];

static int take_nonce(const uint8_t *value, uint32_t length)
{
    if (length != 2 * NONCE)
        return 0;
    memcpy(job.start_nonce, value, NONCE);
    memcpy(job.end_nonce, value + NONCE, NONCE);
    return job.has_nonce = 1;
}

static int take_timeout(const uint8_t *value, uint32_t length)
{
    if (length != sizeof job.timeout_ms)
        return 0;
    memcpy(&job.timeout_ms, value, sizeof job.timeout_ms);
    return job.has_timeout = 1;
}

static int take_not_after(const uint8_t *value, uint32_t length)
{
    if (length != sizeof job.not_after_ms)
        return 0;
    memcpy(&job.not_after_ms, value, sizeof job.not_after_ms);
    return 1;
}

static int take_limit(const uint8_t *value, uint32_t length)
{
    if (length != 20 || job.limits == LIMITS_MAX)
        return 0;
    memcpy(&job.resource[job.limits], value, 4);
    memcpy(&job.limit[job.limits], value + 4, 16);
    job.limits++;
    return 1;
}

static int take_place(const char *path)
{
    if (job.places == PLACES_MAX)
        return 0;
    job.place[job.places++] = path;
    return 1;
}

static int take_secret(uint8_t *item, uint32_t length)
{
    size_t name = length_of((const char *)item); /* the item has a NUL behind it, so that this ends there at last */
    if (name == 0 || name >= length || !job.folder || job.secrets == SECRETS_MAX)
        return 0;
    job.secret[job.secrets].name = (const char *)item;
    job.secret[job.secrets].value = item + name + 1;
    job.secret[job.secrets].size = length - (uint32_t)name - 1;
    job.secrets++;
    return 1;
}

static int take(uint8_t tag, uint8_t *value, uint32_t length)
{
    const char *text = (const char *)value;
    switch (tag) {
    case TAG_NONCE:
        return take_nonce(value, length);
    case TAG_ARGV:
        job.argv[job.words++] = text;
        return 1;
    case TAG_ENV:
        job.env[job.variables++] = text;
        return 1;
    case TAG_CWD:
        job.cwd = text;
        return 1;
    case TAG_TIMEOUT:
        return take_timeout(value, length);
    case TAG_LIMIT:
        return take_limit(value, length);
    case TAG_PLACE:
        return take_place(text);
    case TAG_FOLDER:
        job.folder = text;
        return 1;
    case TAG_SECRET:
        return take_secret(value, length);
    case TAG_SOCKETS:
        return job.few_sockets = length == 0;
    case TAG_NOT_AFTER:
        return take_not_after(value, length);
    case TAG_LEASH:
        return job.leashed = length == 0;
    default:
        return 0;
    }
}

/* Each value moves down over its own header, which leaves room for the NUL that ends a string. */
static int parse(uint8_t *item, size_t size)
{
    while (size > 0) {
        uint8_t tag = item[0];
        uint32_t length;
        if (size < 5)
            return 0;
        memcpy(&length, item + 1, 4);
        if (length > size - 5)
            return 0;
        memcpy(item, item + 5, length);
        item[length] = 0;
        if (!take(tag, item, length))
            return 0;
        item += 5 + length;
        size -= 5 + (size_t)length;
    }
    return job.has_nonce && job.words > 0;
}

static void read_frame(void)
{
    struct { char magic[4]; uint32_t length; } header;
    size_t count = read_exactly(0, &header, sizeof header);
    if (count == 0)
        leave(0); /* stdin was closed: no job will come */
    if (count < sizeof header || !same(header.magic, "RUN1", 4) || header.length > BODY_MAX)
        refuse("runner-init: this is not a job description\n");
    if (read_exactly(0, body, header.length) < header.length || !parse(body, header.length))
        refuse("runner-init: the job description is broken\n");
    if (job.not_after_ms > 0 && now(CLOCK_REALTIME) / 1000000 > job.not_after_ms)
        refuse("runner-init: the job description came too late: its start was given up\n");
}

/* ---- the counters ---------------------------------------------------------------------------------------------------*/

#define UNKNOWN UINT64_MAX

/* A number of the container's control group: in the line that starts with `word` (which ends in a space), or the first. */
struct counter {
    const char *path, *word;
    uint64_t unit;
    int fd; /* open before the job runs: it may set us any limit, also that of open files */
};

static struct counter cpu_ns[] = {
    {CGROUP_ROOT "/cpu.stat", "usage_usec ", 1000, -1},
    {CGROUP_ROOT "/cpuacct/cpuacct.usage", "", 1, -1},
    {CGROUP_ROOT "/cpu,cpuacct/cpuacct.usage", "", 1, -1},
};
static struct counter oom_kills[] = {
    {CGROUP_ROOT "/memory.events", "oom_kill ", 1, -1},
    {CGROUP_ROOT "/memory/memory.oom_control", "oom_kill ", 1, -1},
    {0, 0, 0, -1},
};
static struct counter memory_peak[] = {
    {CGROUP_ROOT "/memory.peak", "", 1, -1},
    {CGROUP_ROOT "/memory/memory.memsw.max_usage_in_bytes", "", 1, -1}, /* what the host swapped out counts to its limit */
    {CGROUP_ROOT "/memory/memory.max_usage_in_bytes", "", 1, -1},
};
enum { CANDIDATES = 3 };

static void open_counters(void)
{
    struct counter *const all[] = {cpu_ns, oom_kills, memory_peak};
    for (int i = 0; i < 3 * CANDIDATES; i++) {
        struct counter *counter = &all[i / CANDIDATES][i % CANDIDATES];
        if (counter->path)
            counter->fd = (int)sys(NR_OPENAT, AT_FDCWD, (long)counter->path, O_CLOEXEC, 0, 0);
    }
}

static uint64_t number_after(const char *line, const char *word)
{
    size_t length = length_of(word);
    while (!same(line, word, length)) {
        while (*line != 0 && *line != '\n')
            line++;
        if (*line++ == 0)
            return UNKNOWN;
    }
    line += length;
    if (*line < '0' || *line > '9')
        return UNKNOWN;
    uint64_t number = 0;
    while (*line >= '0' && *line <= '9')
        number = number * 10 + (uint64_t)(*line++ - '0');
    return number;
}

static uint64_t current(const struct counter candidates[CANDIDATES]) /* the first of them that can tell */
{
    char text[4096];
    for (int i = 0; i < CANDIDATES; i++) {
        long size = sys(NR_PREAD64, candidates[i].fd, (long)text, sizeof text - 1, 0, 0);
        if (size < 0)
            continue;
        text[size] = 0;
        uint64_t number = number_after(text, candidates[i].word);
        if (number != UNKNOWN)
            return number * candidates[i].unit;
    }
    return UNKNOWN;
}

static uint64_t since(uint64_t before, uint64_t after)
{
    return before == UNKNOWN || after == UNKNOWN ? UNKNOWN : after - before;
}

/* ---- who goes first ------------------------------------------------------------------------------------------------ */

/* Where memory is short, the kernel ends the largest process. What fills it may be files, and that process be ours, who
 * have to tell of it. Anybody may ask to go first, and take that back: so do we, while the job inherits it. */
static char own_place[16]; /* as we found it */
static long own_place_size;
static int place_fd; /* open before /proc is closed to us */

static void open_place(void)
{
    place_fd = (int)sys(NR_OPENAT, AT_FDCWD, (long)"/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC, 0, 0);
    own_place_size = sys(NR_PREAD64, place_fd, (long)own_place, sizeof own_place, 0, 0);
}

static void go_first(void)
{
    if (own_place_size > 0)
        sys(NR_WRITE, place_fd, (long)"1000", 4, 0, 0);
}

static void go_as_before(void)
{
    if (own_place_size > 0)
        sys(NR_WRITE, place_fd, (long)own_place, own_place_size, 0, 0);
}

/* ---- the job ------------------------------------------------------------------------------------------------------- */

static void add_deadline(uint64_t start_ns)
{
    static char text[] = "JOB_DEADLINE=00000000000000000000";
    char *digit = text + sizeof text - 1;
    uint64_t seconds = (start_ns / 1000000 + job.timeout_ms + 999) / 1000;
    do {
        *--digit = (char)('0' + seconds % 10);
        seconds /= 10;
    } while (seconds > 0);
    char *name_end = text + sizeof "JOB_DEADLINE=" - 1;
    memcpy(name_end, digit, (size_t)(text + sizeof text - digit));
    job.env[job.variables++] = text;
}

static const char *search_path(void)
{
    for (uint32_t i = 0; i < job.variables; i++)
        if (same(job.env[i], "PATH=", 5))
            return job.env[i] + 5;
    return "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
}

static int write_secret(int folder, const char *name, const uint8_t *value, uint32_t size)
{
    long fd = sys(NR_OPENAT, folder, (long)name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0400, 0);
    int done = fd >= 0 && write_all((int)fd, value, size);
    if (fd >= 0)
        close_fd((int)fd);
    return done;
}

/* There is no process yet but us. A job that lacked one would fail in its own way, so that none is started. Without
 * any, the folder is closed all the same: it is no place to write to by chance. */
static void write_secrets(void)
{
    if (!job.folder)
        return;
    int folder = (int)sys(NR_OPENAT, AT_FDCWD, (long)job.folder, O_CLOEXEC, 0, 0);
    int done = folder >= 0;
    for (uint32_t i = 0; i < job.secrets && done; i++) {
        done = write_secret(folder, job.secret[i].name, job.secret[i].value, job.secret[i].size);
        memset(job.secret[i].value, 0, job.secret[i].size);
    }
    if (!done || sys(NR_FCHMOD, folder, 0500, 0, 0, 0) < 0)
        refuse("runner-init: the secrets cannot be written\n");
    close_fd(folder);
}

static int exec_file(const char *path) /* returns the errno: there is nobody to return to when it succeeds */
{
    return (int)-sys(NR_EXECVE, (long)path, (long)job.argv, (long)job.env, 0, 0);
}

/* Tries each folder of the path. One that lacks the file is passed over; "not permitted" is told if none has it. */
static int exec_by_name(const char *name)
{
    static char path[4096];
    size_t name_size = length_of(name) + 1;
    int error = ENOENT;
    const char *folder = search_path();
    for (;;) {
        size_t length = 0;
        while (folder[length] != 0 && folder[length] != ':')
            length++;
        if (length + 1 + name_size <= sizeof path) {
            memcpy(path, folder, length);
            path[length] = '/';
            memcpy(path + (length > 0 ? length + 1 : 0), name, name_size); /* an empty folder is the current one */
            int failed = exec_file(path);
            if (failed == EACCES)
                error = EACCES;
            else if (failed != ENOENT && failed != ENOTDIR)
                return failed;
        }
        if (folder[length] == 0)
            return error;
        folder += length + 1;
    }
}

static int exec_job(void)
{
    const char *name = job.argv[0];
    if (*name == 0)
        return ENOENT;
    for (const char *c = name; *c != 0; c++)
        if (*c == '/')
            return exec_file(name);
    return exec_by_name(name);
}

static void close_on_exec(void) /* whatever the runtime leaked to us */
{
    if (sys(NR_CLOSE_RANGE, 3, (long)~0U, CLOSE_RANGE_CLOEXEC, 0, 0) == 0)
        return;
    for (int fd = 3; fd < 1024; fd++) /* before Linux 5.11 */
        sys(NR_FCNTL, fd, F_SETFD, FD_CLOEXEC, 0, 0);
}

struct instruction { uint16_t code; uint8_t yes, no; uint32_t value; };
struct program { uint16_t length; const struct instruction *first; };

/*
 * The kernel charges nobody for what waits in the buffers of most kinds of sockets: by netlink alone, a job of 16 MB took
 * gigabytes from the host. Left are Unix, and TCP and UDP over IP, whose buffers count. io_uring makes sockets, too.
 */
#define LOAD(field) {0x20, 0, 0, field}
#define IF_IS(value, yes, no) {0x15, yes, no, value}
#define IF_AT_LEAST(value, yes, no) {0x35, yes, no, value}
#define RETURN(action) {0x06, 0, 0, action}
enum { CALL = 0, CALL_ARCH = 4, FAMILY = 16, PROTOCOL = 32 };
enum { X32 = 0x40000000, IO_URING = 425, AFTER_IO_URING = 428 };
enum { AF_UNIX = 1, AF_INET = 2, AF_INET6 = 10, IPPROTO_TCP = 6, IPPROTO_UDP = 17, IPPROTO_MPTCP = 262 };
enum { ALLOW = 0x7fff0000, FAIL = 0x00050000 };

static const struct instruction few_sockets[] = {
    /*  0 */ LOAD(CALL_ARCH),
    /*  1 */ IF_IS(ARCH, 3, 0),
    /*  2 */ LOAD(CALL),
    /*  3 */ IF_IS(OTHER_SOCKET, 16, 0),
    /*  4 */ IF_IS(OTHER_SOCKETCALL, 15, 3),
    /*  5 */ LOAD(CALL),
    /*  6 */ IF_AT_LEAST(X32, 12, 0),
    /*  7 */ IF_IS(NR_SOCKET, 2, 0),
    /*  8 */ IF_AT_LEAST(IO_URING, 0, 12),
    /*  9 */ IF_AT_LEAST(AFTER_IO_URING, 11, 9),
    /* 10 */ LOAD(FAMILY),
    /* 11 */ IF_IS(AF_UNIX, 9, 0),
    /* 12 */ IF_IS(AF_INET, 1, 0),
    /* 13 */ IF_IS(AF_INET6, 0, 6),
    /* 14 */ LOAD(PROTOCOL),
    /* 15 */ IF_IS(0, 5, 0),
    /* 16 */ IF_IS(IPPROTO_TCP, 4, 0),
    /* 17 */ IF_IS(IPPROTO_UDP, 3, 0),
    /* 18 */ IF_IS(IPPROTO_MPTCP, 2, 1),
    /* 19 */ RETURN(FAIL | ENOSYS),
    /* 20 */ RETURN(FAIL | EAFNOSUPPORT),
    /* 21 */ RETURN(ALLOW),
};

static long restrict_sockets(void)
{
    static const struct program program = {sizeof few_sockets / sizeof *few_sockets, few_sockets};
    sys(NR_PRCTL, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); /* else the kernel lets only root filter itself */
    return sys(NR_PRCTL, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, (long)&program, 0, 0);
}

static long have_no_input(void) /* the lowest free number is that of standard input */
{
    close_fd(0);
    return sys(NR_OPENAT, AT_FDCWD, (long)"/dev/null", 0, 0, 0);
}

static int become_job(void) /* in the child; returns the errno of what failed */
{
    static const uint64_t none = 0;
    sys(NR_SETSID, 0, 0, 0, 0, 0);
    close_on_exec();
    if (job.leashed) {
        long result = have_no_input();
        if (result < 0)
            return (int)-result;
    }
    for (uint32_t i = 0; i < job.limits; i++) {
        long result = sys(NR_PRLIMIT64, 0, job.resource[i], (long)&job.limit[i], 0, 0);
        if (result < 0)
            return (int)-result;
    }
    if (job.cwd) {
        long result = sys(NR_CHDIR, (long)job.cwd, 0, 0, 0, 0);
        if (result < 0)
            return (int)-result;
    }
    if (job.few_sockets) {
        long result = restrict_sockets();
        if (result < 0)
            return (int)-result;
    }
    sys(NR_RT_SIGPROCMASK, SIG_SETMASK, (long)&none, 0, sizeof none, 0);
    return exec_job();
}

/* Returns the job's pid once its program runs; else -errno. The pipe closes at exec, or carries the error. */
static long start_job(void)
{
    int pipe[2], error;
    long result = sys(NR_PIPE2, (long)pipe, O_CLOEXEC, 0, 0, 0);
    if (result < 0)
        return result;
    long pid = sys(NR_CLONE, SIGCHLD, 0, 0, 0, 0); /* a plain fork; aarch64 has no call of that name */
    if (pid < 0)
        return pid;
    if (pid == 0) {
        error = become_job();
        write_all(pipe[1], &error, sizeof error);
        leave(127);
    }
    close_fd(pipe[1]);
    size_t count = read_exactly(pipe[0], &error, sizeof error);
    close_fd(pipe[0]);
    return count == sizeof error ? -error : pid;
}

/* ---- PID 1 --------------------------------------------------------------------------------------------------------- */

enum { KILL_SIGNAL = 40 }; /* a real-time signal that no runtime uses: kill everything, but let the init report */

static uint64_t bit(int signal)
{
    return 1ULL << (signal - 1);
}

struct signal_info { int32_t signal, error, code, padding, pid; uint8_t rest[108]; };

static uint64_t told_to_end; /* when SIGTERM came from outside the container, the last time; 0: never */

/* Signals stay blocked and are taken one by one, so that nothing here is ever interrupted. 0 or less: none came.
   A sender outside the namespace has the pid 0 here, which kill(2) lets nobody pretend: a made-up code is negative. */
static long take_signal(uint64_t set, const struct timespec *timeout)
{
    struct signal_info info;
    long signal = sys(NR_RT_SIGTIMEDWAIT, (long)&set, (long)&info, (long)timeout, sizeof set, 0);
    if (signal == SIGTERM && info.code == 0 && info.pid == 0)
        told_to_end = now(CLOCK_REALTIME);
    return signal;
}

static long reap(int *status)
{
    return sys(NR_WAIT4, -1, (long)status, WNOHANG, 0, 0);
}

static long signal_all(int signal) /* from PID 1 it reaches every process of the namespace but ourselves */
{
    return sys(NR_KILL, -1, signal, 0, 0, 0);
}

static void forward(long signal)
{
    static const struct timespec at_once = {0, 0};
    static const uint64_t forwarded = 1ULL << (SIGHUP - 1) | 1ULL << (SIGINT - 1) | 1ULL << (SIGQUIT - 1) |
                                      1ULL << (SIGUSR1 - 1) | 1ULL << (SIGUSR2 - 1) | 1ULL << (SIGTERM - 1);
    /* The kernel hands out low numbers first: without the second question a storm of SIGHUP would hide the kill. */
    if (signal == KILL_SIGNAL || take_signal(bit(KILL_SIGNAL), &at_once) == KILL_SIGNAL)
        signal_all(SIGKILL);
    else if (forwarded & bit((int)signal))
        signal_all((int)signal);
}

/* One child and one signal a turn: neither a storm of signals nor of orphans keeps the other waiting. */
static int wait_for(long pid)
{
    static const struct timespec at_once = {0, 0};
    for (;;) {
        int status;
        long reaped = reap(&status);
        if (reaped == pid)
            return status;
        long signal = take_signal(~0ULL, reaped > 0 ? &at_once : 0);
        if (signal > 0)
            forward(signal);
    }
}

/* Returns whether all is dead. "No such process" is the proof: zombies and processes that entered from outside count. */
static int kill_all(void)
{
    static const struct timespec ten_ms = {0, 10000000};
    uint64_t begin = now(CLOCK_MONOTONIC);
    for (;;) {
        int status;
        while (reap(&status) > 0)
            ;
        if (signal_all(SIGKILL) == -ESRCH)
            return 1;
        if (now(CLOCK_MONOTONIC) - begin > GIVE_UP_MS * 1000000ULL)
            return 0;
        take_signal(bit(SIGCHLD), &ten_ms); /* one that entered from outside is not our child: look again */
    }
}

static struct __attribute__((packed)) {
    uint32_t length;
    int32_t status, exec_errno;
    uint64_t ended_ns, cpu_ns, memory_peak, oom_kills;
    uint32_t places;
    struct { uint64_t bytes, bytes_free, inodes, inodes_free; } place[PLACES_MAX];
    uint64_t room; /* for what stands behind the places, however few they are */
} report;

/* The engine's log keeps only text as it was, and only whole lines at once: so a record is text, and ends its line. */
static void write_record(int fd, const uint8_t *nonce, const void *data, size_t size)
{
    static uint8_t text[NONCE + 2 * sizeof report + 1];
    uint8_t *to = text + NONCE;
    memcpy(text, nonce, NONCE);
    for (const uint8_t *byte = data; size-- > 0; byte++) {
        *to++ = (uint8_t)"0123456789abcdef"[*byte >> 4];
        *to++ = (uint8_t)"0123456789abcdef"[*byte & 15];
    }
    *to++ = '\n';
    write_all(fd, text, (size_t)(to - text));
}

static void measure_places(void)
{
    for (uint32_t i = 0; i < job.places; i++) {
        struct statfs fs;
        if (sys(NR_STATFS, (long)job.place[i], (long)&fs, 0, 0, 0) < 0) {
            memset(&report.place[i], 0xff, sizeof report.place[i]);
            continue;
        }
        report.place[i].bytes = fs.blocks * (uint64_t)fs.unit;
        report.place[i].bytes_free = fs.available * (uint64_t)fs.unit;
        report.place[i].inodes = fs.inodes;
        report.place[i].inodes_free = fs.inodes_free;
    }
    report.places = job.places;
}

static void write_report(void)
{
    size_t size = offsetof(__typeof__(report), place) + job.places * sizeof report.place[0];
    memcpy((uint8_t *)&report + size, &told_to_end, sizeof told_to_end);
    size += sizeof told_to_end;
    report.length = (uint32_t)(size - offsetof(__typeof__(report), status));
    write_record(1, job.end_nonce, &report, size);
    write_record(2, job.end_nonce, 0, 0);
}

static int exit_code(void)
{
    int error = report.exec_errno, status = report.status;
    if (error != 0)
        return error == ENOENT || error == ENOTDIR ? 127 : 126;
    return status & 0x7f ? 128 + (status & 0x7f) : status >> 8 & 0xff;
}

/*
 * All is told. But the end of a container keeps the engine's processes busy, just when the daemon tells of the job's: so
 * we stay until we are let go, that is until our input ends, as it does when the daemon does. Or until a signal comes.
 */
static void stay(void)
{
    static const struct timespec at_once = {0, 0}, turn = {0, LOOK_MS * 1000000};
    uint64_t until = now(CLOCK_MONOTONIC) + STAY_MS * 1000000ULL;
    struct pollfd input = {0, POLLIN, 0};
    uint8_t byte;
    while (now(CLOCK_MONOTONIC) < until && take_signal(~bit(SIGCHLD), &at_once) < 0) {
        long ready = sys(NR_PPOLL, (long)&input, 1, (long)&turn, 0, 0);
        if (ready > 0 && sys(NR_READ, 0, (long)&byte, 1, 0, 0) == 0)
            return;
    }
}

static void reset_signals(void) /* ours and thereby the job's: what we were started with may be anything */
{
    static const uint64_t zero[4], all = ~0ULL;
    sys(NR_RT_SIGPROCMASK, SIG_SETMASK, (long)&all, 0, sizeof all, 0);
    for (int signal = 1; signal <= SIGNALS; signal++)
        sys(NR_RT_SIGACTION, signal, (long)zero, 0, sizeof all, 0);
}

static void announce_start(void)
{
    uint64_t ns = now(CLOCK_REALTIME);
    if (job.has_timeout)
        add_deadline(ns);
    write_record(1, job.start_nonce, &ns, sizeof ns);
}

#include "probe.c"

_Noreturn __attribute__((used)) void run(const long *stack) /* as the kernel leaves it: the count of words, the words */
{
    const char *const *words = (const char *const *)(stack + 1);
    if (sys(NR_GETPID, 0, 0, 0, 0, 0) != 1)
        refuse("runner-init: only for PID 1 of a container: it kills every other process\n");
    if (stack[0] > 1 && same(words[1], "probe", 6))
        probe(words + 2, (uint32_t)stack[0] - 2);
    open_place();
    sys(NR_PRCTL, PR_SET_DUMPABLE, 0, 0, 0, 0); /* the job, though of our uid, can't read the nonce from our memory */
    reset_signals();
    read_frame();
    write_secrets();
    open_counters();
    uint64_t cpu_before = current(cpu_ns), oom_before = current(oom_kills);
    announce_start();
    go_first();
    long pid = start_job();
    go_as_before();
    report.exec_errno = pid < 0 ? (int32_t)-pid : 0;
    report.status = pid < 0 ? -1 : wait_for(pid);
    report.ended_ns = now(CLOCK_REALTIME);
    measure_places();
    if (!kill_all())
        leave(exit_code());
    report.cpu_ns = since(cpu_before, current(cpu_ns));
    report.oom_kills = since(oom_before, current(oom_kills));
    report.memory_peak = current(memory_peak);
    write_report();
    if (job.leashed && told_to_end == 0) /* else whoever told us waits for the container, and kills it in the end */
        stay();
    leave(exit_code());
}
