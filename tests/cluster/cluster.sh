#!/usr/bin/env bash
# A real Kubernetes of one node on a bare machine, for tests. Needs root, Go, and Debian's packages; pulls no image.
#   cluster.sh build DIR                programs and images, once; DIR keeps them (some 20 minutes of one core, 1.2 GB; 5 with images)
#   cluster.sh up DIR                   a cluster that knows nothing, from what was built; KEEP=1: with the last one's objects
#   cluster.sh load DIR ARCHIVE...      import images (oci-archive or docker-archive)
#   cluster.sh down DIR                 end what `up` started, by process number, and take back mounts, interfaces and iptables rules
# KUBECONFIG is then DIR/kubeconfig, and kubectl DIR/bin/kubectl. Two can be up at once with POD_SUBNET, SERVICE_SUBNET, BRIDGE of their own.
set -euo pipefail
verb=$1 D=$(realpath -m "$2"); shift 2
B=$D/bin; mkdir -p "$B"
KUBERNETES=${KUBERNETES:-1.35.4} ETCD=${ETCD:-3.6.5}
SUBNET=${POD_SUBNET:-10.244.0} SERVICES=${SERVICE_SUBNET:-10.0.0} BRIDGE=${BRIDGE:-mrcni0}
BUILDAH=(buildah --storage-driver vfs --root "$D/bstore" --runroot "$D/brun")
CTR=(ctr -a "$D/cd.sock" -n k8s.io)

# ---- what is built once ----

packages() {
  local wanted=(containerd runc containernetworking-plugins iptables conntrack ethtool socat buildah debootstrap) missing=() p
  for p in "${wanted[@]}"; do dpkg -s "$p" >/dev/null 2>&1 || missing+=("$p"); done
  [ ${#missing[@]} = 0 ] || { apt-get update -qq; apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; }
}
# Without these the server calls itself v0.0.0-master+$Format:%H$, which kubectl cannot parse and a chart's kubeVersion refuses.
stamp() {
  local of=k8s.io/component-base/version minor=${KUBERNETES#1.}
  echo "-s -w -X $of.gitVersion=v$KUBERNETES -X $of.gitMajor=1 -X $of.gitMinor=${minor%%.*} -X $of.gitTreeState=clean" \
    "-X $of.gitCommit=$KUBERNETES -X $of.buildDate=1970-01-01T00:00:00Z"
}
# The module k8s.io/kubernetes replaces its parts by folders of its own; they are published too, one minor version as 0.MINOR.
kubernetes() {
  mkdir -p "$D/src"; cd "$D/src"
  printf 'module cluster\ngo 1.26\n' >go.mod
  local source; source=$(go mod download -json "k8s.io/kubernetes@v$KUBERNETES" | python3 -c 'import json,sys;print(json.load(sys.stdin)["Dir"])')
  { printf 'module cluster\ngo 1.26\nrequire k8s.io/kubernetes v%s\n' "$KUBERNETES"
    awk -v v="v0${KUBERNETES#1}" '/=> \.\/staging/ {print "replace " $1 " => " $1 " " v}' "$source/go.mod"; } >go.mod
  go build -mod=mod -ldflags "$(stamp)" -o "$B/" k8s.io/kubernetes/cmd/{kube-apiserver,kubelet,kube-controller-manager,kube-scheduler,kubectl,kube-proxy}
}
etcd() {
  mkdir -p "$D/esrc"; cd "$D/esrc"
  printf 'module cluster\ngo 1.26\nrequire go.etcd.io/etcd/server/v3 v%s\n' "$ETCD" >go.mod
  go build -mod=mod -ldflags '-s -w' -o "$B/etcd" go.etcd.io/etcd/server/v3
}
# What holds a pod's namespaces: a program that waits for a signal.
pause() {
  mkdir -p "$D/pause"; cd "$D/pause"
  printf 'module pause\ngo 1.26\n' >go.mod
  printf 'package main\nimport ("os"; "os/signal"; "syscall")\nfunc main() { c := make(chan os.Signal, 1); signal.Notify(c, syscall.SIGINT, syscall.SIGTERM); <-c }\n' >main.go
  CGO_ENABLED=0 go build -o pause .
  local c; c=$("${BUILDAH[@]}" from scratch)
  "${BUILDAH[@]}" copy -q "$c" pause /pause >/dev/null
  "${BUILDAH[@]}" config --user 65535:65535 --entrypoint '["/pause"]' "$c" # pods with runAsNonRoot ask for a user
  archive "$c" pause
}
# glibc, Python 3.11 and certificates: what BASE of deploy/Dockerfile has to have.
base() {
  cd "$D"
  [ -d rootfs/etc ] || debootstrap --variant=minbase --include=python3,ca-certificates bookworm rootfs >debootstrap.log
  rm -rf rootfs/var/cache/apt/archives/*.deb rootfs/var/lib/apt/lists/*
  tar -C rootfs -cf base.tar .
  local c; c=$("${BUILDAH[@]}" from scratch)
  "${BUILDAH[@]}" add -q "$c" base.tar / >/dev/null
  archive "$c" base; rm base.tar
}
archive() {
  "${BUILDAH[@]}" commit -q "$1" "localhost/$2:1" >/dev/null
  rm -f "$D/$2.oci"; "${BUILDAH[@]}" push -q "localhost/$2:1" "oci-archive:$D/$2.oci:localhost/$2:1"
}
build() {
  packages
  [ -x "$B/kube-proxy" ] && [ -e "$B/kubectl" ] || kubernetes
  [ -x "$B/etcd" ] || etcd
  [ -f "$D/pause.oci" ] || pause
  [ -f "$D/base.oci" ] || base
}

# ---- what runs ----

start() { local name=$1; shift; setsid "$@" >"$D/$name.log" 2>&1 </dev/null & echo $! >"$D/$name.pid"; }
alive() { [ -f "$D/$1.pid" ] && kill -0 "$(cat "$D/$1.pid")" 2>/dev/null; }
end() { # TERM, ten seconds, KILL; only a process of ours
  alive "$1" || { rm -f "$D/$1.pid"; return 0; }
  local pid; pid=$(cat "$D/$1.pid"); kill "$pid" 2>/dev/null || true
  for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep .2; done
  kill -9 "$pid" 2>/dev/null || true; rm -f "$D/$1.pid"
}
until_true() { # SECONDS COMMAND...: until it succeeds
  local left=$(($1 * 4)); shift
  while ! "$@" >/dev/null 2>&1; do
    left=$((left - 1)); [ $left -gt 0 ] || { echo "cluster: in vain: $*; see $D/*.log" >&2; return 1; }
    sleep .25
  done
}
ready() { "$B/kubectl" get nodes 2>/dev/null | grep -q ' Ready'; }
port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
keys() { # a token of the administrator, a key that signs those of service accounts
  [ -f token ] || head -c 24 /dev/urandom | base64 | tr -d '/+=' >token
  [ -f sa.key ] || openssl genrsa -out sa.key 2048 2>/dev/null
  echo "$(cat token),admin,1,system:masters" >tokens.csv; chmod 600 tokens.csv token sa.key
}
kubeconfig() {
  cat >kubeconfig <<J
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:$API", insecure-skip-tls-verify: true}}]
users: [{name: u, user: {token: "$(cat token)"}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
current-context: c
J
  chmod 600 kubeconfig
}
network() {
  mkdir -p cni
  cat >cni/10-bridge.conflist <<J
{"cniVersion": "1.0.0", "name": "k", "plugins": [
  {"type": "bridge", "bridge": "$BRIDGE", "isGateway": true, "ipMasq": true, "hairpinMode": true, "ipam":
    {"type": "host-local", "dataDir": "$D/ipam", "ranges": [[{"subnet": "$SUBNET.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
J
}
# restrict_oom_score_adj: a machine may lack CAP_SYS_RESOURCE; runc then says "can't get final child's PID from pipe: EOF".
containers() {
  cat >config.toml <<J
version = 2
root = "$D/cd"
state = "$D/cdstate"
[grpc]
  address = "$D/cd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  disable_apparmor = true
  sandbox_image = "localhost/pause:1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$D/cni"
J
}
# A container that a test kills again and again would be started again after up to five minutes.
node() {
  cat >kubelet.yaml <<J
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: cgroupfs
failSwapOn: false
failCgroupV1: false
containerRuntimeEndpoint: unix://$D/cd.sock
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
clusterDomain: cluster.local
clusterDNS: [$SERVICES.10]
evictionHard: {memory.available: "100Mi", nodefs.available: "1%", imagefs.available: "1%"}
enforceNodeAllocatable: []
localStorageCapacityIsolation: false
imageGCHighThresholdPercent: 99
makeIPTablesUtilChains: false
crashLoopBackOff: {maxContainerRestartPeriod: 10s}
J
}
settings() {
  cd "$D"; API=$(port); E1=$(port); E2=$(port)
  IP=$(ip -4 route get 10.255.255.254 2>/dev/null | grep -oP 'src \K\S+' || hostname -I | awk '{print $1}')
  keys; kubeconfig; network; containers; node
}
control_plane() {
  start etcd "$B/etcd" --data-dir "$D/etcd" --listen-client-urls "http://127.0.0.1:$E1" --advertise-client-urls "http://127.0.0.1:$E1" \
    --listen-peer-urls "http://127.0.0.1:$E2"
  start api "$B/kube-apiserver" --etcd-servers="http://127.0.0.1:$E1" --secure-port="$API" --bind-address=127.0.0.1 --advertise-address="$IP" \
    --service-account-issuer=https://kubernetes.default.svc --service-account-key-file=sa.key --service-account-signing-key-file=sa.key \
    --token-auth-file=tokens.csv --authorization-mode=RBAC --cert-dir="$D/certs" --service-cluster-ip-range="$SERVICES.0/24" \
    --kubelet-preferred-address-types=InternalIP
  until_true 120 "$B/kubectl" get namespace default
  "$B/kubectl" delete node n1 --ignore-not-found >/dev/null # else the last one's Ready is taken for ours
  start cm "$B/kube-controller-manager" --kubeconfig kubeconfig --service-account-private-key-file sa.key --leader-elect=false --root-ca-file="$D/certs/apiserver.crt"
  start sch "$B/kube-scheduler" --kubeconfig kubeconfig --leader-elect=false
}
up() {
  [ -x "$B/etcd" ] && [ -f "$D/base.oci" ] || { echo "$D holds no cluster: cluster.sh build $D" >&2; exit 1; }
  ! alive api || { echo "$D is up already" >&2; exit 1; }
  settings; export KUBECONFIG=$D/kubeconfig
  [ -n "${KEEP:-}" ] || rm -rf "$D/etcd" "$D/kubelet"
  start containerd containerd -c "$D/config.toml"
  until_true 30 "${CTR[@]}" version
  [ -n "$("${CTR[@]}" images ls -q name==localhost/pause:1)" ] || load "$D/pause.oci"
  control_plane
  start kubelet "$B/kubelet" --config kubelet.yaml --kubeconfig kubeconfig --hostname-override=n1 --root-dir="$D/kubelet" --cert-dir "$D/kcert" --node-ip="$IP"
  unrouted -I
  start proxy "$B/kube-proxy" --kubeconfig kubeconfig --hostname-override n1 --cluster-cidr "$SUBNET.0/24" --proxy-mode iptables --conntrack-max-per-core 0
  until_true 120 ready
}
load() { local image; for image in "$@"; do "${CTR[@]}" images import "$image" >/dev/null; done; }

# ---- and is taken back ----

# For a moment a Service that changes has no rule, and its address would be asked of the machine's own gateway, which may answer.
unrouted() { # -I or -D
  local chain
  for chain in OUTPUT FORWARD; do iptables "$1" $chain -d "$SERVICES.0/24" -p tcp -j REJECT --reject-with tcp-reset; done
}
end_containers() { # they outlive kubelet and containerd otherwise
  local id
  for id in $("${CTR[@]}" tasks ls -q 2>/dev/null); do "${CTR[@]}" tasks kill -s SIGKILL "$id" >/dev/null 2>&1 || true; done
  for id in $("${CTR[@]}" tasks ls -q 2>/dev/null); do "${CTR[@]}" tasks rm -f "$id" >/dev/null 2>&1 || true; done
  for id in $("${CTR[@]}" containers ls -q 2>/dev/null); do "${CTR[@]}" containers rm "$id" >/dev/null 2>&1 || true; done
}
rules_back() { # kube-proxy's own clean-up leaves these
  local tool table chain from
  for tool in iptables ip6tables; do for table in filter nat mangle; do
    for chain in KUBE-FIREWALL KUBE-KUBELET-CANARY KUBE-IPTABLES-HINT KUBE-PROXY-CANARY; do
      for from in INPUT OUTPUT; do "$tool" -t $table -D $from -j $chain 2>/dev/null || true; done
      "$tool" -t $table -F $chain 2>/dev/null || true; "$tool" -t $table -X $chain 2>/dev/null || true
    done
  done; done
}
down() {
  export KUBECONFIG=$D/kubeconfig
  if alive api && alive kubelet; then timeout 60 "$B/kubectl" delete pods --all -A --grace-period=1 >/dev/null 2>&1 || true; fi
  end kubelet; end proxy; end sch; end cm
  if alive containerd; then end_containers; fi
  end api; end etcd; end containerd
  findmnt -rno TARGET | grep -F "$D/" | sort -r | while read -r mount; do umount -l "$mount" 2>/dev/null || true; done || true
  [ ! -x "$B/kube-proxy" ] || "$B/kube-proxy" --cleanup >/dev/null 2>&1 || true
  ip link del "$BRIDGE" 2>/dev/null || true
  unrouted -D 2>/dev/null || true
  rules_back
  find /sys/fs/cgroup -depth -path '*kubepods*' -type d -exec rmdir {} + 2>/dev/null || true # only empty ones go
  rm -rf "$D/ipam" "$D/cdstate"
}
case $verb in
  build | up | load | down) "$verb" "$@" ;;
  *) echo "build | up | load | down" >&2; exit 2 ;;
esac
