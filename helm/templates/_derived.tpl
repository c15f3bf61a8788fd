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

{{/* The volume is one node's, or has the SQLite file, which two nodes would spoil. */}}
{{- define "shadowserve.hasLoneState" -}}
{{- $isShared := or .Values.persistence.existingClaim (eq .Values.persistence.accessMode "ReadWriteMany") -}}
{{- if and .Values.persistence.enabled (not (and .Values.registry.url $isShared)) }}true{{ end -}}
{{- end -}}

{{/* Seconds until a new pod serves, at worst: it may have to wait for what an old one that ends still has. */}}
{{- define "shadowserve.replaceSeconds" -}}
{{- add .Values.probes.startupSeconds .Values.drainSeconds .Values.preStopSeconds -}}
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
