/* The bare system calls of an append, in a loop: what the machine can do. See floor.py, which compiles and calls this.

   Rule: exactly the calls, in the order of the engine; a line is put together before its clock starts. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct floor {
    int file;                         /* the one .jsonl; -1: a file for each record */
    int folder, shards, hint;         /* descriptors, else */
    int durable, unnamed;
    int64_t header_size;
    const char *header, *temp;        /* what a shard begins with; how a temporary file's name begins */
};

struct source {
    int64_t writer, first, steps;     /* line `n` is head n and body n % steps */
    const char *bodies;
    const int64_t *ends;              /* of the bodies, in bytes from their beginning */
    int64_t most, budget_ns;
};

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static int append_line(const struct floor *floor, const char *line, size_t size)
{
    if (write(floor->file, line, size) != (ssize_t)size)
        return -1;
    return floor->durable ? fdatasync(floor->file) : 0;
}

static int link_it(const struct floor *floor, int fd, const char *temp, int64_t seq)
{
    char name[64], path[64];
    snprintf(name, sizeof name, "%020lld.shard", (long long)seq);
    if (!floor->unnamed)
        return linkat(floor->shards, temp, floor->shards, name, 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return linkat(floor->shards, path, floor->shards, name, AT_SYMLINK_FOLLOW);
}

static int append_record(const struct floor *floor, int64_t seq, const char *line, size_t size)
{
    char nonce[16], temp[128];
    struct stat status;
    struct iovec parts[2] = {{(void *)floor->header, floor->header_size}, {(void *)line, size}};
    int flags = floor->unnamed ? O_TMPFILE | O_WRONLY | O_CLOEXEC : O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
    if (getrandom(nonce, sizeof nonce, 0) != sizeof nonce)
        return -1;
    snprintf(temp, sizeof temp, "%s%lld", floor->temp, (long long)seq);
    int fd = openat(floor->shards, floor->unnamed ? "." : temp, flags, 0600);
    if (fd < 0 || writev(fd, parts, 2) != (ssize_t)(size + floor->header_size))
        return -1;
    if (floor->durable && fdatasync(fd))
        return -1;
    if (link_it(floor, fd, temp, seq) || pwrite(floor->hint, &seq, sizeof seq, 0) != sizeof seq || close(fd))
        return -1;
    if (!floor->unnamed && unlinkat(floor->shards, temp, 0))
        return -1;
    if (floor->durable && fsync(floor->shards))
        return -1;
    return fstatat(floor->folder, "manifest.json", &status, AT_SYMLINK_NOFOLLOW);
}

/* Append until the budget is spent or `most` lines were written; a time each goes to `took_ns`, start and end of all to
   `span_ns`. Returns how many, or -errno. */
int64_t append_for(const struct floor *floor, const struct source *source, int64_t *took_ns, int64_t *span_ns)
{
    int64_t done = 0, last, end;
    char *line = malloc(source->ends[source->steps - 1] + 64);
    if (!line)
        return -ENOMEM;
    span_ns[0] = last = now_ns();
    end = last + source->budget_ns;
    while (last < end && done < source->most) {
        int64_t number = source->first + done, step = number % source->steps;
        int64_t from = step ? source->ends[step - 1] : 0, size = source->ends[step] - from;
        int head = sprintf(line, "{\"type\":\"message\",\"id\":\"%lld-%lld\",", (long long)source->writer, (long long)number);
        memcpy(line + head, source->bodies + from, size);
        int64_t begun = now_ns();
        errno = 0;
        if (floor->file >= 0 ? append_line(floor, line, head + size) : append_record(floor, number + 1, line, head + size)) {
            free(line);
            return errno ? -errno : -EIO;
        }
        last = now_ns();
        took_ns[done++] = last - begun;
    }
    span_ns[1] = last;
    free(line);
    return done;
}
