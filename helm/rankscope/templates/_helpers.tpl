{{- define "rankscope.labels" -}}
app.kubernetes.io/name: rankscope
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}
{{- define "rankscope.selector" -}}
app.kubernetes.io/name: rankscope
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- define "rankscope.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- define "rankscope.endpoint" -}}
{{- if .Values.otlp.endpoint }}{{ .Values.otlp.endpoint }}{{ else if .Values.collector.enabled -}}
http://{{ .Release.Name }}-collector:{{ if eq .Values.otlp.protocol "grpc" }}4317{{ else }}4318{{ end }}
{{- end }}
{{- end }}
{{- define "rankscope.otlpEnvironment" -}}
{{- with include "rankscope.endpoint" . }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ . | quote }}
- name: OTEL_EXPORTER_OTLP_PROTOCOL
  value: {{ $.Values.otlp.protocol | quote }}
{{- end }}
{{- with .Values.otlp.headersSecret }}
- name: OTEL_EXPORTER_OTLP_HEADERS
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: headers
{{- end }}
{{- end }}
{{- define "rankscope.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 10001
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end }}
{{- /* The port that a URL leads to. */}}
{{- define "rankscope.port" -}}
{{- $url := urlParse . }}
{{- if regexMatch ":[0-9]+$" $url.host }}{{ regexFind "[0-9]+$" $url.host }}{{ else }}{{ ternary "443" "80" (eq $url.scheme "https") }}{{ end }}
{{- end }}
{{- /* A quantity of memory in bytes; nothing where it is written in another way. */}}
{{- define "rankscope.bytes" -}}
{{- $units := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 }}
{{- $text := toString . }}
{{- if regexMatch "^[0-9]+(\\.[0-9]+)?([kMGT]|[KMGT]i)?$" $text }}
{{- mulf (float64 (regexFind "^[0-9.]+" $text)) (get $units (regexFind "[A-Za-z]*$" $text)) | int64 }}
{{- end }}
{{- end }}
{{- /* The governor holds the agent to its budget only where the kernel does not end it before that. */}}
{{- define "rankscope.checkBudget" -}}
{{- $budget := dig "budget" "pss_bytes" 100000000 .Values.settings | int64 }}
{{- with dig "limits" "memory" "" .Values.resources }}
{{- $limit := include "rankscope.bytes" . }}
{{- if and $limit (lt (int64 $limit) $budget) }}
{{- fail (printf "resources.limits.memory: %s is less than the %d bytes that settings.budget.pss_bytes lets the agent take: raise the one or lower the other" (toString .) $budget) }}
{{- end }}
{{- end }}
{{- end }}
