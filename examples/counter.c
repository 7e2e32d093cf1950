/* Counts, and makes a checkpoint of itself at every fifth number: launcher --name counting -- ./counter 10
 * Kill it, and `ctl restore counting` goes on from the last one.
 *
 *     cargo build --release -p dormouse
 *     cc -Idormouse -o counter examples/counter.c -Ltarget/release -ldormouse -Wl,-rpath,$PWD/target/release */
#include <dormouse.h>
#include <stdio.h>
#include <stdlib.h>

static char cache[4 << 20]; /* not worth keeping: it can be filled anew */

int main(int argc, char **argv) {
	int last = argc > 1 ? atoi(argv[1]) : 10;
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (dormouse_drop(cache, sizeof cache) < 0) fprintf(stderr, "%s\n", dormouse_message());
	for (int count = 1; count <= last; count++) {
		printf("%d\n", count);
		if (count % 5) continue;
		switch (dormouse_checkpoint()) {
		case DORMOUSE_CONTINUED: printf("continued: %s\n", dormouse_message()); break;
		case DORMOUSE_RESTORED: printf("restored: %s\n", dormouse_message()); break;
		case DORMOUSE_ALONE: printf("alone: %s\n", dormouse_message()); break;
		default: printf("failed: %s\n", dormouse_message());
		}
	}
	return 0;
}
