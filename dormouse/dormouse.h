/* Dormouse from the program's side: link with -ldormouse.
 *
 * Without Dormouse underneath (the program was not started by launcher, nor restored, and has not called dormouse_session) every call is harmless,
 * and dormouse_checkpoint says so. None is to be called from a signal handler that may have interrupted malloc or one of these (after raise() that is
 * known). Thread-safe. In a forked child nothing of its parent's is in force.
 *
 * A call that fails gives a negative number: minus the exit code that `ctl` has for it (-2 usage, -3 refused, -6 busy, -7 storage, -9 failed and put
 * back, ...: README.md). The program runs on as before, and dormouse_message() says why. */
#ifndef DORMOUSE_H
#define DORMOUSE_H
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

#define DORMOUSE_CONTINUED 0 /* the checkpoint is complete, and this is the program that it was made of */
#define DORMOUSE_RESTORED 1  /* this is the restored program */
#define DORMOUSE_ALONE 2     /* no Dormouse underneath: nothing was done */

/* Makes a checkpoint of this program. Returns when it is complete or has failed, and again, in the restored program, whenever one is restored from
 * it. Calls from several threads make one checkpoint after the other. Not from a hook.
 * It needs memory: if another thread holds the lock of this one's malloc (another is inside fork, say), it waits for that, as malloc would. What other
 * threads are in the middle of else does not matter. */
int dormouse_checkpoint(void);

/* What there is to say of this thread's last call that gave a number; until its next one. Never NULL. */
const char *dormouse_message(void);

/* How often this program was restored: 0 until it is for the first time. */
uint64_t dormouse_generation(void);

/* Name of the session that this program is; NULL if it is none. Valid until this thread asks again. */
const char *dormouse_name(void);

/* Critical sections: between them no checkpoint is made, by whomever it is asked for. They nest and count for all threads together. A checkpoint that is
 * asked for meanwhile waits up to 10 s and is then refused as busy. dormouse_enable gives 0, or -2 if there was none to leave. */
void dormouse_disable(void);
int dormouse_enable(void);

/* Memory that is not worth keeping (caches, buffers): left out of checkpoints, zeros after a restore; `ctl inspect` tells how much. Only the whole pages
 * in it; gives how many bytes they are. For private memory of no file; other memory is kept, and that is said. Up to 256 regions.
 * dormouse_keep takes it back, with the same numbers; do that before the memory is unmapped. */
ptrdiff_t dormouse_drop(const void *begin, size_t length);
int dormouse_keep(const void *begin, size_t length);

/* Hooks run in a thread of their own, which exists once the first is registered, while everything else runs. The order is that of pthread_atfork:
 * `before` in reverse order of registration, `after` and `restored` in the order of registration. Each function may be NULL. */
struct dormouse_hook {
	const char *name; /* in messages; copied */
	/* Before each checkpoint. Not 0: a veto; the reason is written to `reason`, `size` bytes with its NUL. */
	int (*before)(void *data, char *reason, size_t size);
	/* After it, in the program that goes on, if `before` ran and did not veto: `number` of the checkpoint, or 0 and `why` it failed (else NULL). */
	void (*after)(void *data, uint64_t number, const char *why);
	/* In a restored program. */
	void (*restored)(void *data, uint64_t generation);
	void *data;
};

/* Registers a copy of it; gives its number, above 0. Functions and data must stay good until it is removed. */
int dormouse_add_hook(const struct dormouse_hook *hook);
int dormouse_remove_hook(int number);

/* How long one hook may take; 10000 ms unless this is called. A checkpoint whose hook takes longer is refused, naming it. */
void dormouse_hook_timeout(unsigned milliseconds);

/* Makes this program, which was not started by launcher, the session `name`: from then on dormouse_checkpoint starts a recorder itself (`ctl`:
 * $DORMOUSE_CTL, else beside the program, else in PATH). In a session already, it changes nothing. */
int dormouse_session(const char *name);

#ifdef __cplusplus
}
#endif
#endif
