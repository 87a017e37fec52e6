/* Which windows are due, as window.py says it. */

#include <stdint.h>

typedef struct {
    int64_t streams, hop, max_batch;
    const uint8_t *live;  /* (streams,): whether late windows are skipped */
    int64_t *next_end;    /* (streams,) */
    int64_t *skipped;     /* (streams,) */
    int64_t *due;         /* (streams,): room */
    int64_t *in_turns, *ends; /* (streams * max_batch,): the windows */
    int64_t distinct, lost;   /* streams with a window, and windows skipped */
} Schedule;

/* What Python must have been written for. */
int64_t window_interface(void) { return (int64_t)sizeof(Schedule); }

/* Takes all windows that are due, of streams that are written up to `written` (streams,). Returns how many. */
int64_t window_take(Schedule *s, const int64_t *written) {
    int64_t most = 0, count = 0;
    s->distinct = s->lost = 0;
    for (int64_t i = 0; i < s->streams; i++) {
        const int64_t ahead = written[i] - s->next_end[i], due = ahead < 0 ? 0 : ahead / s->hop + 1;
        s->due[i] = due < s->max_batch ? due : s->max_batch;
        s->skipped[i] = s->live[i] ? due - s->due[i] : 0;
        s->lost += s->skipped[i];
        s->distinct += due > 0;
        if (s->due[i] > most) most = s->due[i];
    }
    for (int64_t turn = 0; turn < most; turn++)
        for (int64_t i = 0; i < s->streams; i++)
            if (turn < s->due[i]) {
                s->in_turns[count] = i;
                s->ends[count++] = s->next_end[i] + turn * s->hop;
            }
    for (int64_t i = 0; i < s->streams; i++) s->next_end[i] += (s->due[i] + s->skipped[i]) * s->hop;
    return count;
}
