/*
 * The probe: what a network lets through. A part of init.c, which runs it instead of a job when its words ask for it:
 *
 *     probe [+]a.b.c.d:port … [+][xxxx:xxxx:xxxx:xxxx:xxxx:xxxx:xxxx:xxxx]:port …
 *
 * To each address goes a datagram (a question to a name server), then a connection is tried. A line for each word tells
 * what came back: "open" if anybody there answered, were it only to say that the port is closed; "filtered" if somebody on
 * the way said that it is not allowed; "silent" if nothing came. The kernel bounds how many such answers it gives to one
 * address, so a datagram is repeated for some seconds where the plus says that an answer is expected.
 */

#if defined(__x86_64__)
enum { NR_CONNECT = 42, NR_GETSOCKOPT = 55 };
#else
enum { NR_CONNECT = 203, NR_GETSOCKOPT = 209 };
#endif

enum { SOCK_STREAM = 1, SOCK_DGRAM = 2, SOCK_NONBLOCK = 04000, SOL_SOCKET = 1, SO_ERROR = 4 };
enum { ECONNREFUSED = 111, EHOSTUNREACH = 113, EINPROGRESS = 115 };
enum { PROBES_MAX = 16, ROUNDS = 5, ROUND_MS = 1000 };
enum answer { SILENT, FILTERED, OPEN };

/* The kernel's sockaddr_in6, in which an IPv4 address lies where the flow is; it takes the longer one for both. */
struct address { uint16_t family; uint8_t port[2], ip[4], ip6[16], scope[4]; };

static struct {
    const char *word;
    struct address address;
    int expected;
    enum answer datagram, connection;
} probes[PROBES_MAX];

/* Who answers it is a name server: the root's name servers, asked for with recursion. */
static const uint8_t QUESTION[] = {0x52, 0x4e, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1};

/* Reads a number of at most `most`, and the character that has to follow; null if there is none. */
static const char *take_number(const char *text, uint32_t most, char next, uint32_t *number)
{
    const char *start = text;
    for (*number = 0; *text >= '0' && *text <= '9' && *number <= most; text++)
        *number = *number * 10 + (uint32_t)(*text - '0');
    return text > start && *number <= most && *text == next ? text + 1 : 0;
}

/* Reads a.b.c.d: and what follows; null if it is none. */
static const char *take_ip(const char *text, struct address *address)
{
    uint32_t number;
    address->family = AF_INET;
    for (int i = 0; text && i < 4; i++) {
        text = take_number(text, 255, i < 3 ? '.' : ':', &number);
        address->ip[i] = (uint8_t)number;
    }
    return text;
}

static int digit_of(char character) /* a small hexadecimal one; -1 if it is none */
{
    if (character >= '0' && character <= '9')
        return character - '0';
    return character >= 'a' && character <= 'f' ? character - 'a' + 10 : -1;
}

/* Reads an address of eight groups of four digits, with the brackets and the colon behind them; null if it is none. */
static const char *take_ip6(const char *text, struct address *address)
{
    address->family = AF_INET6;
    for (int i = 0; i < 16; i += 2) {
        if (*text++ != (i ? ':' : '['))
            return 0;
        for (int half = 0; half < 2; half++, text += 2) {
            int high = digit_of(text[0]), low = high < 0 ? -1 : digit_of(text[1]);
            if (low < 0)
                return 0;
            address->ip6[i + half] = (uint8_t)(high << 4 | low);
        }
    }
    return text[0] == ']' && text[1] == ':' ? text + 2 : 0;
}

static int take_address(const char *text, struct address *address)
{
    uint32_t number;
    text = *text == '[' ? take_ip6(text, address) : take_ip(text, address);
    if (!text || !take_number(text, 65535, 0, &number))
        return 0;
    address->port[0] = (uint8_t)(number >> 8);
    address->port[1] = (uint8_t)number;
    return 1;
}

static enum answer answer_of(long result)
{
    if (result >= 0 || result == -ECONNREFUSED)
        return OPEN;
    return result == -EHOSTUNREACH ? FILTERED : SILENT;
}

/* Waits until a round is over, or nobody is left to wait for; each that is ready is asked what came. */
static void listen_to(struct pollfd *polls, uint32_t count, long (*hear)(int), enum answer *answers)
{
    uint64_t end = now(CLOCK_MONOTONIC) + ROUND_MS * 1000000ULL;
    for (;;) {
        uint64_t time = now(CLOCK_MONOTONIC), left = end - time;
        struct timespec timeout = {(int64_t)(left / 1000000000), (int64_t)(left % 1000000000)};
        uint32_t waited_for = 0;
        for (uint32_t i = 0; i < count; i++)
            waited_for += polls[i].fd >= 0;
        if (waited_for == 0 || time >= end || sys(NR_PPOLL, (long)polls, count, (long)&timeout, 0, 0) <= 0)
            return;
        for (uint32_t i = 0; i < count; i++) {
            if (polls[i].fd < 0 || polls[i].returned == 0)
                continue;
            long result = hear(polls[i].fd);
            if (result == -EAGAIN)
                continue;
            answers[i] = answer_of(result);
            polls[i].fd = -1; /* the kernel passes over it, and its socket ends with us */
        }
    }
}

static long hear_datagram(int fd)
{
    uint8_t answer[512];
    return sys(NR_READ, fd, (long)answer, sizeof answer, 0, 0);
}

static long hear_connection(int fd)
{
    int error = 0;
    uint32_t size = sizeof error;
    sys(NR_GETSOCKOPT, fd, SOL_SOCKET, SO_ERROR, (long)&error, (long)&size);
    return -error;
}

static int connected(uint32_t i, int kind) /* a socket, or -1 where no way leads */
{
    long fd = sys(NR_SOCKET, probes[i].address.family, kind | SOCK_NONBLOCK | O_CLOEXEC, 0, 0, 0);
    long result = fd < 0 ? fd : sys(NR_CONNECT, fd, (long)&probes[i].address, sizeof probes[i].address, 0, 0);
    return result == 0 || result == -EINPROGRESS ? (int)fd : -1;
}

static void send_datagrams(uint32_t count)
{
    struct pollfd polls[PROBES_MAX];
    enum answer answers[PROBES_MAX] = {SILENT};
    for (uint32_t i = 0; i < count; i++)
        polls[i] = (struct pollfd){connected(i, SOCK_DGRAM), POLLIN, 0};
    for (int round = 0; round < ROUNDS; round++) {
        int expecting = 0, given_up = 0;
        for (uint32_t i = 0; i < count; i++) {
            expecting |= polls[i].fd >= 0 && (probes[i].expected || round == 0);
            given_up |= probes[i].expected && answers[i] == OPEN; /* the network is not shut: no more needs to be known */
            if (polls[i].fd < 0)
                continue;
            long sent = sys(NR_WRITE, polls[i].fd, (long)QUESTION, sizeof QUESTION, 0, 0);
            if (sent < 0 && answer_of(sent) != SILENT) { /* an answer to the last one, told in the place of sending */
                answers[i] = answer_of(sent);
                polls[i].fd = -1;
            }
        }
        if (!expecting || given_up)
            break;
        listen_to(polls, count, hear_datagram, answers);
    }
    for (uint32_t i = 0; i < count; i++)
        probes[i].datagram = answers[i];
}

static void try_connections(uint32_t count)
{
    struct pollfd polls[PROBES_MAX];
    enum answer answers[PROBES_MAX] = {SILENT};
    for (uint32_t i = 0; i < count; i++)
        polls[i] = (struct pollfd){connected(i, SOCK_STREAM), POLLOUT, 0};
    listen_to(polls, count, hear_connection, answers);
    for (uint32_t i = 0; i < count; i++)
        probes[i].connection = answers[i];
}

/* Whether any interface but the loopback has an IPv6 address: whoever has one reaches its neighbours by theirs. */
static int has_ipv6(void)
{
    char text[4096], *end = text, *word = text; /* loopback has a single line, of some 60 bytes */
    long fd = sys(NR_OPENAT, AT_FDCWD, (long)"/proc/net/if_inet6", O_CLOEXEC, 0, 0);
    if (fd == -ENOENT)
        return 0; /* a kernel without IPv6 */
    long got = fd < 0 ? fd : sys(NR_READ, (int)fd, (long)text, sizeof text, 0, 0);
    if (got < 0)
        refuse("runner-init: /proc/net/if_inet6 cannot be read\n");
    for (; end < text + got; end++) { /* a line ends with the interface's name */
        if (*end == ' ')
            word = end + 1;
        if (*end == '\n' && (end - word != 2 || word[0] != 'l' || word[1] != 'o'))
            return 1;
    }
    return 0;
}

static void say(const char *text)
{
    write_all(1, text, length_of(text));
}

static _Noreturn void probe(const char *const *words, uint32_t count)
{
    static const char *const told[] = {" silent", " filtered", " open"};
    if (count > PROBES_MAX)
        refuse("runner-init: too many addresses to probe\n");
    for (uint32_t i = 0; i < count; i++) {
        probes[i].word = words[i];
        probes[i].expected = words[i][0] == '+';
        if (!take_address(words[i] + probes[i].expected, &probes[i].address))
            refuse("runner-init: not an address to probe\n");
    }
    send_datagrams(count);
    try_connections(count);
    for (uint32_t i = 0; i < count; i++) {
        say(probes[i].word + probes[i].expected);
        say(told[probes[i].datagram]);
        say(told[probes[i].connection]);
        say("\n");
    }
    say(has_ipv6() ? "ipv6 here\n" : "ipv6 none\n");
    leave(0);
}
