import gc
import weakref

import torch

from mutoscope.sampling.base import SampleEvent, last_of, ready


def test_the_last_event_is_found_with_none_of_the_others_kept():
    alive: list[weakref.ref] = []
    largest, nothing = 0, torch.zeros(1, 1, 1, 1)

    def events():
        nonlocal largest
        for step in range(20):
            event = SampleEvent(
                step=step, num_steps=20, decided=nothing.bool(), frames=None, seconds=0.0, draft=ready(nothing.long())
            )
            alive.append(weakref.ref(event))
            yield event
            del event
            gc.collect()
            largest = max(largest, sum(ref() is not None for ref in alive))

    assert last_of(events()).step == 19
    assert largest <= 2
