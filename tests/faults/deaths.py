"""Faults of processes and of the network between them: killed, frozen, slowed down, cut off."""

from __future__ import annotations

import random
import signal
import time

from doomed import Doomed, die_often
from scene import Ground, Scene, Told, no_lag, record, until


def kill_worker(ground: Ground, scene: Scene) -> Told:
    """kill -9 of the worker at phases that it has reached, again and again, while rows keep coming."""
    chance, times = random.Random(11), 2 if ground.quick else 12
    total = times * 400
    doomed = Doomed(scene.instance, scene.command("run", "--follow"), scene.name, [record(at) for at in range(total)])
    took = die_often(doomed, times, total, chance)
    scene.sent += range(total)
    begin_s = time.monotonic()
    code = scene.learn()
    lag = no_lag(time.monotonic() - begin_s, "the last worker's start")
    told = Told(
        "worker killed", f"kill -9 of the worker {times} times while {total} rows came, {took} of them once it had the branch"
    )
    told.shown = [*scene.proofs(), lag] if code == 0 else [("I9", False, scene.last_words())]
    return told


def kill_broker(ground: Ground, scene: Scene) -> Told:
    """kill -9 of the broker and its restart; one worker lives through all of them."""
    chance, times = random.Random(13), 1 if ground.quick else 10
    worker = scene.worker()
    rows = scene.sending(times * 600, times * 6, 0.5)
    for at in range(times):
        scene.wait_read(chance.randrange(at * 600 + 100, at * 600 + 500))  # clients have found it again since the last
        ground.broker.kill()
        time.sleep(chance.uniform(0.0, 0.5))  # it is away for so long
        ground.broker.start()
    begin_s = time.monotonic()
    rows.join()
    scene.wait_read(len(scene.sent))
    lag = no_lag(time.monotonic() - begin_s, "the last restart")
    told = Told("broker killed", f"kill -9 of the broker {times} times while {len(scene.sent)} rows came")
    code = scene.end(worker)
    told.shown = [*scene.proofs(), lag, ("I6", code == 0 and scene.summary().end.epoch == 1, "one worker lived through it")]
    return told


def freeze_worker(ground: Ground, scene: Scene) -> Told:
    """SIGSTOP for a minute; another takes over; SIGCONT: the first finds that it was replaced."""
    rows = scene.sending(3000, 30, 0.1)
    zombie = scene.worker()
    scene.wait_read(300)
    zombie.send_signal(signal.SIGSTOP)
    begin_s = time.monotonic()
    heir = scene.worker("--take-over")
    scene.wait_read(1500)
    time.sleep(0.0 if ground.quick else max(0.0, 60 - (time.monotonic() - begin_s)))
    frozen_s = time.monotonic() - begin_s
    zombie.send_signal(signal.SIGCONT)
    until(lambda: zombie.poll() is not None, "the zombie ends")
    stderr = scene.last_words()
    rows.join()
    # What the first had let out before it froze arrives now, behind what the heir has let out, and `millrace status` shows
    # those older totals until the next step; so there is one.
    scene.send(100)
    scene.wait_read(len(scene.sent))
    scene.end(heir)
    fenced = zombie.returncode == 1 and scene.summary().end.epoch == 2
    told = Told("worker frozen", f"SIGSTOP for {frozen_s:.0f} s, another took over, SIGCONT")
    told.shown = [*scene.proofs(), ("I6", fenced, f"the first ended with 1: {stderr[:160]}")]
    return told


def break_network(ground: Ground, scene: Scene) -> Told:
    """Delay, little bandwidth, silence and hang-ups between the worker and its broker."""
    short = 1.0 if ground.quick else 10.0
    worker, proxy = scene.worker(*scene.proxied), ground.proxy
    rows = scene.sending(3000, 60, short / 15)
    scene.wait_read(50)
    proxy.latency_s, proxy.bandwidth = 0.1, 64_000.0
    time.sleep(2 * short)
    proxy.heal()
    proxy.silent = True
    time.sleep(2 * short)
    proxy.heal()
    resets = proxy.resets
    for _ in range(5):
        proxy.reset_peer()
        time.sleep(short / 5)
    begin_s = time.monotonic()
    rows.join()
    scene.wait_read(len(scene.sent))
    lag = no_lag(time.monotonic() - begin_s, "the last fault")
    code, hung_up = scene.end(worker), (proxy.resets - resets) // 2
    did = f"100 ms and 64 kB/s for {2 * short:.0f} s, black hole for {2 * short:.0f} s, {hung_up} connections reset"
    told = Told("network broken", did)
    told.shown = [*scene.proofs(), lag, ("I6", code == 0, "one worker lived through it")]
    return told
