{{/* A pipeline as TOML, a key a line. Helm's own toToml writes 256 as 256.0, for YAML's numbers arrive here without their kind:
whole ones up to 2^53 are written as whole numbers, which the loader also takes where it wants another. */}}
{{- define "millrace.toml" -}}
{{- range $key, $value := . }}
{{ include "millrace.toml.key" $key }} = {{ if and (kindIs "slice" $value) $value (kindIs "map" (first $value)) -}}
[
{{- range $value }}
  {{ include "millrace.toml.value" . }},
{{- end }}
]
{{- else -}}
{{ include "millrace.toml.value" $value }}
{{- end -}}
{{- end }}
{{ end -}}

{{- define "millrace.toml.key" -}}
{{- if regexMatch "^[A-Za-z0-9_-]+$" . -}}{{ . }}{{- else -}}{{ include "millrace.toml.value" . }}{{- end -}}
{{- end -}}

{{- define "millrace.toml.value" -}}
{{- if kindIs "map" . -}}
{{- $pairs := list -}}
{{- range $key, $value := . -}}
{{- $pairs = append $pairs (printf "%s = %s" (include "millrace.toml.key" $key) (include "millrace.toml.value" $value)) -}}
{{- end -}}
{ {{- join ", " $pairs | printf " %s " -}} }
{{- else if kindIs "slice" . -}}
{{- $items := list -}}
{{- range . -}}
{{- $items = append $items (include "millrace.toml.value" .) -}}
{{- end -}}
[{{ join ", " $items }}]
{{- else if kindIs "float64" . -}}
{{- if and (eq (floor .) .) (le . 9007199254740992.0) (ge . -9007199254740992.0) -}}{{ int64 . }}
{{- else -}}
{{- toJson . -}}{{- if regexMatch "^-?[0-9]+$" (toJson .) -}}.0{{- end -}}
{{- end -}}
{{- else -}}
{{- toJson . | replace "\u007f" "\\u007f" -}}
{{- end -}}
{{- end -}}
