"""Faults of what lies in the log: gone, made anew, grown, with gaps, too large, flipped, or a bomb."""

from __future__ import annotations

import random

from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import ConfigResource
from scene import Ground, Scene, Shown, Told, no_lag, patiently, record, refused, until

from millrace.learners.errors import BadInputError
from millrace.streams.records import Record, tp_name

BOMB_MIB = 300
KINDS = ("gzip", "snappy", "lz4", "zstd")


def expire(ground: Ground, scene: Scene) -> Told:
    """Retention goes past the saved offset while no worker runs."""
    scene.send(1000)
    scene.learn()
    before = scene.summary()
    scene.send(500)
    scene.log.delete_before(tp_name(scene.name, 0), 1200)
    told = Told("records expired", "retention took offsets up to 1200, the saved offset is 1000")
    code = scene.learn()
    told.shown = [refused(scene, code, [f"{scene.name}:0", "1000", "--branch"]), untouched(scene, before)]
    return told


def untouched(scene: Scene, before) -> Shown:
    """No step was journaled and no mark made since."""
    after = scene.summary()
    same = after.position == before.position and after.marks[-1].state_sha256 == before.marks[-1].state_sha256
    return "I10", same, f"nothing learned since: positions and state {after.marks[-1].state_sha256[:12]} as before"


def recreate(ground: Ground, scene: Scene) -> Told:
    """The topic is deleted and made anew under the same name, with as many records."""
    scene.send(1000)
    scene.learn()
    before = scene.summary()
    scene.link.delete([scene.name])
    until(lambda: scene.name not in scene.link.topics([scene.name]), "the topic is gone")
    scene.log.create_topic(scene.name)
    scene.send(1500)
    told = Told("topic recreated", "deleted and made anew with 1500 other records")
    code = scene.learn()
    told.shown = [refused(scene, code, [scene.name, "--branch"]), untouched(scene, before)]
    return told


def add_partitions(ground: Ground, scene: Scene) -> Told:
    """Two partitions more, while a worker follows."""
    scene.send(1000)
    worker = scene.worker()
    scene.wait_read(1000)
    scene.link._admin.create_partitions({scene.name: 3})
    until(lambda: scene.link.topics([scene.name])[scene.name].partitions == 3, "the partitions are there")
    scene.link.give_up(scene.link._producing())  # a producer that knows of them
    scene.send(2000, 4)
    seconds = scene.wait_read(3000)
    scene.end(worker)
    read = [stop for tp, stop in sorted(scene.summary().position.items())]
    told = Told("partitions added", "from 1 to 3 while a worker follows, then 2000 rows")
    told.shown = [*scene.proofs(), no_lag(seconds, "the last row")]
    told.shown.append(("I1", len(read) == 3 and all(read), f"read of each from its beginning: {read}"))
    return told


def leave_gaps(ground: Ground, scene: Scene) -> Told:
    """Transactions, some of them aborted, between rows that are learned."""
    producer = KafkaProducer(bootstrap_servers=ground.broker.bootstrap, transactional_id=scene.name, metrics_enabled=False)
    producer.init_transactions()
    for aborted in (False, True, True, False):
        producer.begin_transaction()
        start = 9000 if aborted else len(scene.sent)
        for sample in map(record, range(start, start + 50)):
            producer.send(scene.name, sample.value, sample.key)
        producer.flush()
        producer.abort_transaction() if aborted else producer.commit_transaction()
        scene.sent += [] if aborted else range(start, start + 50)
        scene.send(200)
    producer.close()
    code = scene.learn()
    end, rows = scene.read_by_now(), len(scene.sent)
    told = Told("transactions aborted", f"4 transactions among {rows} rows, two of them aborted")
    told.shown = [*scene.proofs(), ("I1", code == 0 and end == rows + 104, f"{end} offsets passed, {end - rows} of them gaps")]
    return told


def compact(ground: Ground, scene: Scene) -> Told:
    """A compacted topic: what its cleaner takes before it is read was never there, what it takes afterwards stays learned."""
    settings = {"cleanup.policy": "compact", "segment.ms": "20", "min.cleanable.dirty.ratio": "0.01"}
    admin = KafkaAdminClient(bootstrap_servers=ground.broker.bootstrap)
    admin.alter_configs([ConfigResource("topic", scene.name, settings)])
    admin.close()
    chance = random.Random(17)
    for _ in range(10):  # each row that is sent again takes the place of the one before it
        scene.send(100)
        scene.log.append(scene.name, [record(number) for number in chance.sample(scene.sent, 40)])
    scene.send(100)  # a segment that is still written is not cleaned
    cleaned(scene, 1100)
    scene.learn()
    told = Told("log compacted", "the cleaner took 400 of 1500 records before they were read, and 60 afterwards")
    told.shown = scene.proofs()
    now_ms = record(len(scene.sent)).timestamp_ms
    scene.log.append(scene.name, [Record(None, str(at).encode(), timestamp_ms=now_ms) for at in chance.sample(scene.sent, 60)])
    scene.send(200)
    cleaned(scene, 1100 + 200)
    code = scene.learn()
    told.shown += [("I9", code == 0, "a worker goes on over what is gone"), *still_learned(scene)]
    return told


def cleaned(scene: Scene, records: int) -> None:
    """Wait until the cleaner has left so many."""
    source = scene.instance.source([scene.name])
    until(lambda: _there(source, scene.name) <= records, "the cleaner runs")


def still_learned(scene: Scene) -> list[Shown]:
    """What was learned and has gone since is in the state, once; that a fresh fold cannot prove it is said."""
    status = scene.asked("status")
    try:
        message = f"verify proved what is gone: {scene.asked('verify')}"
    except RuntimeError as error:
        message = str(error).rpartition("millrace: ")[2]
    refusal = ("I10", "are not what step" in message, f"verify refuses: {message}")
    return [scene.gram_of(scene.sent, status), refusal, scene.accounted(status)]


def _there(source, topic: str) -> int:
    tp = tp_name(topic, 0)
    return len(source.read(tp, *source.bounds()[tp]).events)


def oversize(ground: Ground, scene: Scene) -> Told:
    """Records that are too large for the pipeline, for the topic, or no rows at all."""
    scene.send(500)
    large = b'{"x": [1, 2, 3, 4, 5], "y": 1, "more": "' + b"x" * (2 << 20) + b'"}'
    scene.log.append(scene.name, [Record(large, b"large"), Record(b"{torn", b"torn")])
    try:
        scene.log.append(scene.name, [Record(bytes(33 << 20))])
        message = "was taken"
    except BadInputError as error:
        message = str(error)
    scene.send(500)
    scene.learn()
    told = Told("records oversized", "2 MiB over log.max_bytes, a torn row, and 33 MiB over what a topic takes")
    told.shown = [*scene.proofs(), ("I7", "larger than" in message, f"the sender of 33 MiB was told: {message[:60]}")]
    return told


def flip(ground: Ground, scene: Scene) -> Told:
    """A byte of a segment file is flipped while the broker is down."""
    scene.send(500)
    scene.learn()
    before = scene.summary()
    scene.send(500, 5)
    ground.broker.stop()
    (segment,) = (ground.broker.folder / "data" / f"{scene.name}-0").glob("*.log")
    at = segment.read_bytes().index(b'"x": [700')
    with segment.open("r+b") as file:
        file.seek(at)
        file.write(b"X")
    ground.broker.start()
    patiently(lambda: scene.link.topics([scene.name]))
    told = Told("byte flipped", "in the batch of offsets 700 to 799, in its segment file, while the broker was down")
    code = scene.learn()
    read = scene.read_by_now()
    told.shown = [
        refused(scene, code, [f"{scene.name}:0 from offset 700", "failed crc check"]),
        (
            "I10",
            500 <= read <= 700 and scene.summary().marks[: len(before.marks)] == before.marks,
            f"read up to {read}, not beyond",
        ),
    ]
    return told


def bomb(kind: str, ground: Ground, scene: Scene) -> Told:
    """300 MiB of zeros in one compressed record."""
    scene.send(500)
    scene.learn()
    before = scene.summary()
    kib = _blow_up(ground, scene.name, kind)
    code, most_mib = scene.ended_by_itself(scene.worker(follow=False))
    told = Told(f"{kind} bomb", f"a record of {BOMB_MIB} MiB of zeros, {kib} KiB on the broker")
    told.shown = [
        refused(scene, code, [f"{scene.name}:0 from offset 500", "decodes to more than 64 MiB"]),
        ("I8", most_mib < BOMB_MIB, f"the worker held {most_mib} MiB at most"),
        untouched(scene, before),
    ]
    return told


def _blow_up(ground: Ground, topic: str, kind: str) -> int:
    """Append it; what it weighs on the broker, in KiB."""
    large = {"max_request_size": 1 << 30}
    producer = KafkaProducer(bootstrap_servers=ground.broker.bootstrap, compression_type=kind, metrics_enabled=False, **large)
    producer.send(topic, bytes(BOMB_MIB << 20), b"bomb").get(60)
    producer.close()
    return max(path.stat().st_size for path in (ground.broker.folder / "data" / f"{topic}-0").glob("*.log")) >> 10
