{{- define "shadowserve.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "shadowserve.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "shadowserve.name" . -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "shadowserve.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "shadowserve.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "shadowserve.selector" -}}
app.kubernetes.io/name: {{ include "shadowserve.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* What the Service, the policy and the monitors find: a Job's pods are of the release too, but serve nothing. */}}
{{- define "shadowserve.serverSelector" -}}
{{ include "shadowserve.selector" . }}
app.kubernetes.io/component: server
{{- end -}}

{{- define "shadowserve.labels" -}}
{{ include "shadowserve.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "shadowserve.image" -}}
{{- $engine := ternary "gpu" "cpu" (gt (int .Values.gpu.count) 0) -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default (printf "%s-%s" .Chart.AppVersion $engine) .Values.image.tag }}
{{- end -}}
{{- end -}}

{{- define "shadowserve.url" -}}
http://{{ include "shadowserve.fullname" . }}:{{ .Values.service.port }}
{{- end -}}
