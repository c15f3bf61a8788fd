{{/* The words after `shadowserve serve`, as a YAML list. Later options win over the file of `config`. */}}
{{- define "shadowserve.command" -}}
- serve
- {{ default "/opt/shadowserve/demo/base" .Values.model.name | quote }}
# Two words: vLLM looks for the option by itself.
- --config
- /etc/shadowserve/config/serve.yaml
- --host=0.0.0.0
- --port=8000
- --served-model-name={{ include "shadowserve.servedName" . }}
{{- with .Values.model.revision }}
- --revision={{ . }}
{{- end }}
{{- if gt (int .Values.gpu.count) 1 }}
- --tensor-parallel-size={{ int .Values.gpu.count }}
{{- end }}
- --state-dir=/var/lib/shadowserve/state
{{- with .Values.registry.url }}
- --registry-url={{ . }}
{{- end }}
- --shutdown-timeout={{ int .Values.drainSeconds }}
- --max-resident-adapters={{ int .Values.slots.maxResident }}
- --max-pinned-adapters={{ int .Values.slots.maxPinned }}
- --max-host-adapters={{ int .Values.slots.maxHost }}
{{- if include "shadowserve.hasTenants" . }}
- --tenants-file={{ include "shadowserve.tenantsFile" . }}
{{- else }}
- --allow-unauthenticated
{{- end }}
{{- if .Values.adapterVolume }}
- --adapter-root=/adapters
{{- end }}
{{- range .Values.hub.allow }}
- {{ printf "--hub-allow=%s" . | quote }}
{{- end }}
{{- with .Values.hub.endpoint }}
- --hub-endpoint={{ . }}
{{- end }}
{{- with .Values.tracing.endpoint }}
- --otlp-traces-endpoint={{ . }}
{{- end }}
{{- range .Values.adapters }}
{{- if .path }}
- {{ include "shadowserve.adapterOption" . | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "shadowserve.servedName" -}}
{{- default (default "demo" .Values.model.name) .Values.model.servedName -}}
{{- end -}}

{{- define "shadowserve.adapterOption" -}}
--adapter={{ include "shadowserve.adapterName" . }}={{ include "shadowserve.adapterPath" .path -}}
{{- with .backboneConfig }},backbone_config={{ include "shadowserve.adapterPath" . }}{{ end -}}
{{- end -}}

{{/* The file of `--config`. The demo's tiny model gains nothing from graphs and starts sooner without them. */}}
{{- define "shadowserve.serveConfig" -}}
{{- $isGpu := gt (int .Values.gpu.count) 0 -}}
{{- $demo := dict "dtype" (ternary "bfloat16" "float32" $isGpu) "max-model-len" 1024 "enforce-eager" true "gpu-memory-utilization" 0.3 -}}
{{- $config := .Values.config -}}
{{- if not .Values.model.name }}{{ $config = merge (deepCopy .Values.config) $demo }}{{ end -}}
{{- range $name, $value := $config }}
{{ $name }}: {{ toJson $value }}
{{- end }}
{{- end -}}
