{{/* Facts that follow from the values: "true" or empty. */}}

{{- define "shadowserve.hasTenants" -}}
{{- if or .Values.tenants .Values.tenantsSecret.name }}true{{ end -}}
{{- end -}}

{{- define "shadowserve.hasReplicas" -}}
{{- $most := ternary (int .Values.replicas) (int .Values.autoscaling.maxReplicas) (eq .Values.autoscaling.type "none") -}}
{{- if gt $most 1 }}true{{ end -}}
{{- end -}}

{{- define "shadowserve.hasHub" -}}
{{- $model := .Values.model.name -}}
{{- if or .Values.hub.allow (and $model (not (hasPrefix "/" $model))) }}true{{ end -}}
{{- end -}}

{{/* A pod more than wanted would need a GPU more, or a volume that only one node mounts. */}}
{{- define "shadowserve.hasNoSurge" -}}
{{- $isShared := or .Values.persistence.existingClaim (eq .Values.persistence.accessMode "ReadWriteMany") -}}
{{- if or (gt (int .Values.gpu.count) 0) (and .Values.persistence.enabled (not (and .Values.registry.url $isShared))) }}true{{ end -}}
{{- end -}}

{{/* Adapters from the hub and pins are asked for over HTTP; paths are options of the command line. */}}
{{- define "shadowserve.hasPublisher" -}}
{{- range .Values.adapters }}{{ if or .hub .pin }}true{{ end }}{{ end -}}
{{- end -}}

{{/* The port of a URL, or its scheme's. */}}
{{- define "shadowserve.portOf" -}}
{{- $authority := (urlParse .url).host -}}
{{- $port := regexFind ":[0-9]+$" $authority | trimPrefix ":" -}}
{{- default .default $port -}}
{{- end -}}

{{- define "shadowserve.adapterPath" -}}
{{- if hasPrefix "/" . }}{{ . }}{{ else }}/adapters/{{ . }}{{ end -}}
{{- end -}}

{{- define "shadowserve.adapterName" -}}
{{- with .tenant }}{{ . }}/{{ end }}{{ .name -}}
{{- end -}}

{{- define "shadowserve.tenantsFile" -}}
{{- if .Values.tenantsSecret.name -}}
/etc/shadowserve/tenants/{{ .Values.tenantsSecret.key }}
{{- else -}}
/run/shadowserve/tenants.json
{{- end -}}
{{- end -}}
