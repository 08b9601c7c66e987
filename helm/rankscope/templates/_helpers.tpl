{{- define "rankscope.labels" -}}
app.kubernetes.io/name: rankscope
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}
{{- define "rankscope.selector" -}}
app.kubernetes.io/name: rankscope
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
