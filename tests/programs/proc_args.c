#include "common.h"
#include <sys/auxv.h>

static const char *about = "exe link, argument, environment and auxv areas as /proc shows them, also after a change of the title in place; code, data and stack bounds";

static char exe[PATH_MAX], args[65536], env[131072], aux[8192], stat_line[2048];
static ssize_t args_len, env_len, aux_len;
static char *title; // first argument, as the kernel keeps it

static void bounds(char *out) { // of /proc/self/stat: 26-28 code and stack start, 45-51 data, brk, arguments, environment
    char text[2048], *p;
    slurp("/proc/self/stat", text, sizeof text);
    p = strrchr(text, ')');
    int n = 2;
    out[0] = 0;
    for (char *t = strtok(p + 1, " \n"); t; t = strtok(NULL, " \n"))
        if (++n, (n >= 26 && n <= 28) || (n >= 45 && n <= 51)) strcat(strcat(out, t), " ");
}
static void setup(void) {
    char dummy[2048];
    unsigned long arg_start = 0;
    bounds(dummy);
    sscanf(dummy, "%*u %*u %*u %*u %*u %*u %lu", &arg_start);
    title = (char *)arg_start;
    memset(title, 'T', strlen(title)); // as a server sets its title
    setenv("ADDED_LATER", "not in the area", 1);
    MUST(readlink("/proc/self/exe", exe, sizeof exe - 1));
    args_len = slurp("/proc/self/cmdline", args, sizeof args);
    env_len = slurp("/proc/self/environ", env, sizeof env);
    aux_len = slurp("/proc/self/auxv", aux, sizeof aux);
    bounds(stat_line);
}
static void spoil(void) { title[0] = 'X'; }
static void prove(void) {
    static char now[131072];
    memset(now, 0, sizeof now);
    CHECK_OK(readlink("/proc/self/exe", now, PATH_MAX), "/proc/self/exe");
    CHECK_STR(exe, now, "exe link");
    CHECK_EQ(args_len, slurp("/proc/self/cmdline", now, sizeof now), "length of cmdline");
    CHECK_MEM(args, now, (size_t)args_len, "cmdline");
    CHECK_EQ(env_len, slurp("/proc/self/environ", now, sizeof now), "length of environ");
    CHECK_MEM(env, now, (size_t)env_len, "environ");
    CHECK_EQ(aux_len, slurp("/proc/self/auxv", now, sizeof now), "length of auxv");
    CHECK_MEM(aux, now, (size_t)aux_len, "auxv");
    bounds(now);
    CHECK_STR(stat_line, now, "code, data, stack and area bounds");
    CHECK_STR("not in the area", getenv("ADDED_LATER"), "a variable added later");
    CHECK(strstr((char *)getauxval(AT_EXECFN), "proc_args"), "AT_EXECFN names the program");
    int fd = open("/proc/self/exe", O_RDONLY);
    CHECK_EQ(4, read(fd, now, 4), "read of the executable");
    CHECK_MEM("\177ELF", now, 4, "the executable");
}
