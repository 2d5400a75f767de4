/* Counts the primes up to a number (sieve of Eratosthenes), and tells how far it is. */
#include <stdio.h>
#include <stdlib.h>

static FILE *open_named(const char *variable, const char *mode) {
    const char *path = getenv(variable);
    FILE *file = path ? fopen(path, mode) : NULL;
    if (!file) {
        perror(variable);
        exit(1);
    }
    return file;
}

static void progress(int percent) {
    FILE *file = open_named("JOB_PROGRESS_FILE", "w");
    fprintf(file, "{\"percent\": %d}", percent);
    fclose(file);
}

int main(void) {
    long limit = 0, count = 0, last = 0;
    FILE *payload = open_named("JOB_PAYLOAD_FILE", "r");
    if (fscanf(payload, "%ld", &limit) != 1 || limit < 2 || limit > 20000000) {
        fprintf(stderr, "the payload has to be a number from 2 to 20000000\n");
        return 1;
    }
    char *composite = calloc(limit + 1, 1);
    if (!composite) {
        perror("memory");
        return 1;
    }
    for (long n = 2; n <= limit; n++) {
        if (n % (limit / 10 + 1) == 0) progress((int)(100 * n / limit));
        if (composite[n]) continue;
        count++;
        last = n;
        for (long multiple = n * n; multiple <= limit; multiple += n) composite[multiple] = 1;
    }
    printf("%ld primes up to %ld, the last is %ld\n", count, limit, last);
    fprintf(open_named("JOB_OUTPUT_FILE", "w"), "{\"count\": %ld, \"last\": %ld}", count, last);
    return 0;
}
