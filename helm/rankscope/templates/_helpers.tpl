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
