"""How long `millrace up` may take to end, part by part; what kills it sooner, as a pod's grace may, cuts something off."""

COMPANION_S = 10  # for each of the two commands that run beside, which may be killed at any moment
WORK_S = 20  # for requests that are at work: at the front, and then once more in replicas
RECORD_S = 10  # for a replica to append the answers that wait
MARK_S = 60  # for trainers to mark a version
SLACK_S = 5  # for a process to hear that it is to end, and to say that it has
RAY_S = 20  # for Ray's own processes
# The companions, the front, the replicas, the trainers of shards and then the merger, Ray.
END_S = 2 * COMPANION_S + WORK_S + (WORK_S + RECORD_S + SLACK_S) + 2 * (MARK_S + SLACK_S) + RAY_S
