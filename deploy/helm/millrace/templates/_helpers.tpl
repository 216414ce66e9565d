{{- define "millrace.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{/* 52 characters: Kubernetes adds eleven to a StatefulSet's name in a label, which has 63. */}}
{{- define "millrace.fullname" -}}
{{- $name := .Values.nameOverride | default .Chart.Name -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- .Values.fullnameOverride | default $full | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "millrace.selector" -}}
app.kubernetes.io/name: {{ include "millrace.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "millrace.labels" -}}
{{ include "millrace.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "millrace.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "millrace.configMap" -}}
{{- .Values.existingConfigMap | default (printf "%s-pipeline" (include "millrace.fullname" .)) -}}
{{- end -}}

{{- define "millrace.tokens" -}}
{{- .Values.auth.existingSecret | default (printf "%s-tokens" (include "millrace.fullname" .)) -}}
{{- end -}}

{{- define "millrace.claim" -}}
{{- .Values.persistence.existingClaim | default (printf "state-%s-0" (include "millrace.fullname" .)) -}}
{{- end -}}

{{/* Seconds that a pod may take to end: preStop's ten, the drain, and then what `millrace up` waits for, each at its longest: 5 for
requests at the front, 35 for replicas to answer and to record, 65 for each of two rounds of trainers to mark a version, 20 for
Ray. tests/deploy compares this with the constants of the code. */}}
{{- define "millrace.graceSeconds" -}}
{{- add 10 (ceil .Values.serving.drainSeconds) 5 35 130 20 -}}
{{- end -}}

{{- define "millrace.env" -}}
- name: MILLRACE_HOME # so that `kubectl exec` needs no --home
  value: /var/lib/millrace
{{- with .Values.kafka }}
{{- if .existingSecret }}
- name: MILLRACE_KAFKA_PASSWORD
  valueFrom:
    secretKeyRef: { name: {{ .existingSecret | quote }}, key: {{ .passwordKey | quote }} }
{{- if .keyPasswordKey }}
- name: MILLRACE_KAFKA_SSL_PASSWORD
  valueFrom:
    secretKeyRef: { name: {{ .existingSecret | quote }}, key: {{ .keyPasswordKey | quote }} }
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "millrace.envFrom" -}}
{{- if .Values.mlflow.existingSecret }}
- secretRef: { name: {{ .Values.mlflow.existingSecret | quote }} }
{{- end }}
{{- with .Values.extraEnvFrom }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "millrace.mounts" -}}
- name: config
  mountPath: /etc/millrace
  readOnly: true
- name: state
  mountPath: /var/lib/millrace
- name: temporary
  mountPath: /tmp
- name: shared-memory
  mountPath: /dev/shm
{{- if .Values.kafka.tlsSecret }}
- name: kafka-tls
  mountPath: /etc/millrace-kafka
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}
