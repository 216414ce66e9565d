{{/* What a schema cannot say of the values, each as one sentence that names the key. */}}
{{- define "millrace.checks" -}}
{{- include "millrace.checks.pipeline" . -}}
{{- include "millrace.checks.room" . -}}
{{- include "millrace.checks.parts" . -}}
{{- if and .Values.lookups (lookup "v1" "ConfigMap" .Release.Namespace "kube-root-ca.crt") -}}{{/* a namespace that is there */}}
{{- include "millrace.checks.cluster" . -}}
{{- end -}}
{{- end -}}

{{- define "millrace.checks.pipeline" -}}
{{- if not (or .Values.pipeline .Values.existingConfigMap) -}}
{{- fail "pipeline: say what is learned, as a pipeline file does, or name a ConfigMap that has one with existingConfigMap." -}}
{{- end -}}
{{- if and .Values.pipeline .Values.existingConfigMap -}}
{{- fail "existingConfigMap: there is a pipeline beside it; give one of the two." -}}
{{- end -}}
{{- $kafka := dig "log" "kafka" dict (.Values.pipeline | default dict) -}}
{{- if and (hasPrefix "SASL" ($kafka.security_protocol | default "")) (not .Values.kafka.existingSecret) (not .Values.extraEnv) (not .Values.extraEnvFrom) -}}
{{- fail (printf "kafka.existingSecret: pipeline.log.kafka.security_protocol = %s needs a password; name the Secret that has it." $kafka.security_protocol) -}}
{{- end -}}
{{- end -}}

{{/* Idle, two processes that answer were measured to take 1.3 GB with all beside them, and each more 0.11. */}}
{{- define "millrace.checks.room" -}}
{{- $needed := add 1280 (mul 128 .Values.serving.replicas) -}}
{{- range $kind := list "limits" "requests" -}}
{{- $memory := dig $kind "memory" "" $.Values.resources -}}
{{- if and $memory (lt (include "millrace.mebibytes" $memory | int) ($needed | int)) -}}
{{- fail (printf "resources.%s.memory = %v: with serving.replicas = %v it must be at least %dMi." $kind $memory $.Values.serving.replicas $needed) -}}
{{- end -}}
{{- end -}}
{{- if lt (include "millrace.mebibytes" .Values.sharedMemory | int) 80 -}}
{{- fail (printf "sharedMemory = %v: Ray's object store is there; it must be at least 80Mi." .Values.sharedMemory) -}}
{{- end -}}
{{- end -}}

{{- define "millrace.mebibytes" -}}
{{- $text := toString . -}}
{{- $units := dict "Ki" 0.0009765625 "Mi" 1.0 "Gi" 1024.0 "Ti" 1048576.0 "Pi" 1073741824.0 "Ei" 1099511627776.0 "k" 0.00095367431640625 "M" 0.95367431640625 "G" 953.67431640625 "T" 953674.31640625 "P" 953674316.40625 "E" 953674316406.25 "m" 0.00000000095367431640625 "" 0.00000095367431640625 -}}
{{- $unit := regexFind "[A-Za-z]*$" $text -}}
{{- mulf (trimSuffix $unit $text | float64) (get $units $unit) | floor | int64 -}}
{{- end -}}

{{- define "millrace.checks.parts" -}}
{{- if eq .Values.service.http .Values.service.grpc -}}
{{- fail (printf "service.grpc = %v: service.http is the same; give each its own." .Values.service.grpc) -}}
{{- end -}}
{{- if and .Values.backup.enabled (not .Values.backup.existingClaim) -}}
{{- fail "backup.existingClaim: name the claim that back-ups are to lie in." -}}
{{- end -}}
{{- if and .Values.backup.restore (not .Values.backup.existingClaim) -}}
{{- fail "backup.existingClaim: name the claim that the back-up of backup.restore lies in." -}}
{{- end -}}
{{- if and .Values.backup.enabled (eq .Values.persistence.accessMode "ReadWriteOncePod") -}}
{{- fail "backup.enabled: a back-up is a second pod on the claim, which persistence.accessMode = ReadWriteOncePod shuts out; use ReadWriteOnce." -}}
{{- end -}}
{{- if .Values.strimzi.enabled -}}
{{- if ne (dig "log" "kind" "sqlite" (.Values.pipeline | default dict)) "kafka" -}}
{{- fail "strimzi.enabled: it makes the topics of a pipeline on Kafka; set pipeline.log.kind = kafka." -}}
{{- end -}}
{{- if not .Values.strimzi.cluster -}}
{{- fail "strimzi.cluster: name the Kafka object of Strimzi that is to have the topics." -}}
{{- end -}}
{{- end -}}
{{- range $protocol := list "http" "grpc" -}}
{{- $ingress := get $.Values.ingress $protocol -}}
{{- if and $ingress.enabled (not $ingress.hosts) -}}
{{- fail (printf "ingress.%s.hosts: name at least one host." $protocol) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What `helm install` can look up; what only renders a chart finds nothing and asks nothing. */}}
{{- define "millrace.checks.cluster" -}}
{{- $namespace := .Release.Namespace -}}
{{- $secrets := list (list "auth.existingSecret" .Values.auth.existingSecret .Values.auth.key) (list "kafka.existingSecret" .Values.kafka.existingSecret .Values.kafka.passwordKey) (list "kafka.tlsSecret" .Values.kafka.tlsSecret "") (list "mlflow.existingSecret" .Values.mlflow.existingSecret "") -}}
{{- range $secrets -}}
{{- include "millrace.checks.secret" (list $namespace . (and $.Values.strimzi.enabled (eq (first .) "kafka.existingSecret"))) -}}
{{- end -}}
{{- if and .Values.existingConfigMap (not (dig "data" "pipeline.toml" "" (lookup "v1" "ConfigMap" $namespace .Values.existingConfigMap))) -}}
{{- fail (printf "existingConfigMap = %s: there is no such ConfigMap with a key pipeline.toml in namespace %s." .Values.existingConfigMap $namespace) -}}
{{- end -}}
{{- range $key := list "persistence" "backup" -}}
{{- $claim := (get $.Values $key).existingClaim -}}
{{- if and $claim (not (lookup "v1" "PersistentVolumeClaim" $namespace $claim)) -}}
{{- fail (printf "%s.existingClaim = %s: there is no such PersistentVolumeClaim in namespace %s." $key $claim $namespace) -}}
{{- end -}}
{{- end -}}
{{- include "millrace.checks.alone" . -}}
{{- end -}}

{{- define "millrace.checks.secret" -}}
{{- $key := index . 1 0 -}}{{- $name := index . 1 1 -}}{{- $entry := index . 1 2 -}}
{{- if and $name (not (last .)) -}}{{/* Strimzi makes its own after it has seen the user */}}
{{- $data := (lookup "v1" "Secret" (first .) $name).data -}}
{{- if not $data -}}
{{- fail (printf "%s = %s: there is no such Secret in namespace %s, or it is empty." $key $name (first .)) -}}
{{- end -}}
{{- if and $entry (not (get $data $entry)) -}}
{{- fail (printf "%s = %s: this Secret has no key %s, or it is empty." $key $name $entry) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Two that write one folder would fight for its branch. */}}
{{- define "millrace.checks.alone" -}}
{{- $claim := include "millrace.claim" . -}}
{{- $own := include "millrace.fullname" . -}}
{{- range (lookup "apps/v1" "StatefulSet" .Release.Namespace "").items -}}
{{- $other := .metadata.name -}}
{{- range .spec.template.spec.volumes -}}
{{- if and (ne $other $own) (eq (dig "persistentVolumeClaim" "claimName" "" .) $claim) -}}
{{- fail (printf "persistence.existingClaim = %s: StatefulSet %s uses this claim already; a folder has one writer." $claim $other) -}}
{{- end -}}
{{- end -}}
{{- range .spec.volumeClaimTemplates -}}
{{- if and (ne $other $own) (eq (printf "%s-%s-0" .metadata.name $other) $claim) -}}
{{- fail (printf "persistence.existingClaim = %s: StatefulSet %s uses this claim already; a folder has one writer." $claim $other) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
