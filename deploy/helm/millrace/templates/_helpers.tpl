{{- define "millrace.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 45 | trimSuffix "-" -}}
{{- end -}}

{{/* 45 characters: a CronJob's name has 52, and a StatefulSet's stands in a label of 63 with eleven more. */}}
{{- define "millrace.fullname" -}}
{{- $name := .Values.nameOverride | default .Chart.Name -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- .Values.fullnameOverride | default $full | trunc 45 | trimSuffix "-" -}}
{{- end -}}

{{/* Of an object: (list . COMPONENT). That of the pod which learns and answers is "pipeline". */}}
{{- define "millrace.selector" -}}
{{- $root := first . -}}
app.kubernetes.io/name: {{ include "millrace.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ last . }}
{{- end -}}

{{- define "millrace.labels" -}}
{{- $root := first . -}}
{{ include "millrace.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
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

{{/* What every container of the image has. */}}
{{- define "millrace.container" -}}
image: {{ include "millrace.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext: {{- toYaml .Values.securityContext | nindent 2 }}
terminationMessagePolicy: FallbackToLogsOnError
{{- end -}}

{{- define "millrace.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* What every pod has. */}}
{{- define "millrace.pod" -}}
automountServiceAccountToken: false
{{- with .Values.serviceAccountName }}
serviceAccountName: {{ . }}
{{- end }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
securityContext: {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "millrace.env" -}}
- name: MILLRACE_HOME # so that `kubectl exec` needs no --home
  value: /var/lib/millrace
{{- $kafka := .Values.kafka }}
{{- if $kafka.existingSecret }}
- name: MILLRACE_KAFKA_PASSWORD
  valueFrom:
    secretKeyRef: { name: {{ $kafka.existingSecret }}, key: {{ $kafka.passwordKey }} }
{{- if $kafka.keyPasswordKey }}
- name: MILLRACE_KAFKA_SSL_PASSWORD
  valueFrom:
    secretKeyRef: { name: {{ $kafka.existingSecret }}, key: {{ $kafka.keyPasswordKey }} }
{{- end }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "millrace.envFrom" -}}
{{- if .Values.mlflow.existingSecret }}
- secretRef: { name: {{ .Values.mlflow.existingSecret }} }
{{- end }}
{{- with .Values.extraEnvFrom }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "millrace.mounts" -}}
- { name: config, mountPath: /etc/millrace, readOnly: true }
- { name: state, mountPath: /var/lib/millrace }
- { name: temporary, mountPath: /tmp }
- { name: shared-memory, mountPath: /dev/shm }
{{- if .Values.kafka.tlsSecret }}
- { name: kafka-tls, mountPath: /etc/millrace-kafka, readOnly: true }
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The pipeline file and the tokens, as one folder. */}}
{{- define "millrace.configVolume" -}}
name: config
projected:
  defaultMode: 0440
  sources:
    - configMap:
        name: {{ include "millrace.configMap" . }}
        items: [{ key: pipeline.toml, path: pipeline.toml }]
    - secret:
        name: {{ include "millrace.tokens" . }}
        items: [{ key: {{ .Values.auth.key }}, path: tokens/tokens }]
{{- end -}}
