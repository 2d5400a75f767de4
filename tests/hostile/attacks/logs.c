/* What can be written where the daemon reads. */
#include "attack.h"

static char block[64 * KIB];

static void send_all(int fd, size_t size)
{
    size_t done = 0;
    while (done < size) {
        ssize_t result = write(fd, block + done, size - done);
        if (result > 0)
            done += (size_t)result;
        else
            _exit(3);
    }
}

/* flood FD KIND MEBIBYTES: as fast as they are taken. KIND: lines, line (without an end), nul, binary. */
int flood(int count, char **words)
{
    if (count < 3)
        return 64;
    int fd = atoi(words[0]);
    for (size_t i = 0; i < sizeof block; i++)
        block[i] = strcmp(words[1], "nul") == 0 ? 0
                 : strcmp(words[1], "binary") == 0 ? (char)(128 + i * 37 % 128)
                 : strcmp(words[1], "line") == 0 ? 'x'
                 : i % 64 == 63 ? '\n' : 'x';
    for (long left = atol(words[2]) * MIB / (long)sizeof block; left > 0; left--)
        send_all(fd, sizeof block);
    return 0;
}

/* blanks N: as many empty lines, each written by itself. */
int blanks(int count, char **words)
{
    for (int left = count > 0 ? atoi(words[0]) : 1000; left > 0; left--)
        if (write(1, "\n", 1) != 1)
            return 3;
    return 0;
}

/* Frames as the engine's, records as the init's. */
int forge(int count, char **words)
{
    static const char frame[] = "\1\0\0\0\0\0\0\4fake\2\0\0\0\0\0\0\4fake\nRUN1\4\0\0\0fake\n";
    static const char record[] = "0123456789abcdef0800000000000000000000000000000000000000\n0123456789abcdef\n";
    (void)count, (void)words;
    for (int fd = 1; fd <= 2; fd++) {
        write(fd, frame, sizeof frame - 1);
        write(fd, record, sizeof record - 1);
    }
    return 5;
}

int close_all(int count, char **words)
{
    (void)count, (void)words;
    fcntl(1, F_SETFL, O_NONBLOCK);
    for (int fd = 0; fd < 1024; fd++)
        close(fd);
    rest(0.3);
    return open("/work/there", O_CREAT | O_WRONLY, 0600) == 0 ? 6 : 7;
}
