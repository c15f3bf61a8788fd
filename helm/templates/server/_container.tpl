{{/* Where everything that is written goes: the root file system is read-only. */}}
{{- define "shadowserve.environment" -}}
- name: HOME
  value: /var/cache/shadowserve
# The compiler's cache folder is named after the user, who has no entry in /etc/passwd under another runAsUser.
- name: USER
  value: shadowserve
- name: XDG_CACHE_HOME
  value: /var/cache/shadowserve
- name: HF_HOME
  value: /var/cache/shadowserve/huggingface
- name: VLLM_CACHE_ROOT
  value: /var/cache/shadowserve/vllm
- name: TORCHINDUCTOR_CACHE_DIR
  value: /var/cache/shadowserve/inductor
- name: TRITON_CACHE_DIR
  value: /var/cache/shadowserve/triton
- name: CUDA_CACHE_PATH
  value: /var/cache/shadowserve/cuda
- name: PYTHONDONTWRITEBYTECODE
  value: "1"
- name: VLLM_NO_USAGE_STATS
  value: "1"
{{- if not (include "shadowserve.hasHub" .) }}
- name: HF_HUB_OFFLINE
  value: "1"
{{- end }}
{{- with .Values.hub.endpoint }}
# The base model comes from where adapters come from: the NetworkPolicy opens no other hub.
- name: HF_ENDPOINT
  value: {{ . | quote }}
{{- end }}
{{- if eq (int .Values.gpu.count) 0 }}
# GiB; the engine's default is half of the node's memory.
- name: VLLM_CPU_KVCACHE_SPACE
  value: "1"
{{- end }}
{{- with .Values.model.tokenSecret }}
{{- if .name }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ .name }}
      key: {{ .key }}
{{- end }}
{{- end }}
{{- with .Values.registry.passwordSecret }}
{{- if .name }}
- name: PGPASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ .name }}
      key: {{ .key }}
{{- end }}
{{- end }}
{{- with .Values.env }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "shadowserve.probes" -}}
{{- $p := .Values.probes -}}
startupProbe:
  httpGet: {path: /health/ready, port: http}
  periodSeconds: {{ $p.periodSeconds }}
  timeoutSeconds: {{ $p.timeoutSeconds }}
  failureThreshold: {{ div (add $p.startupSeconds $p.periodSeconds -1) $p.periodSeconds }}
readinessProbe:
  httpGet: {path: /health/ready, port: http}
  periodSeconds: {{ $p.periodSeconds }}
  timeoutSeconds: {{ $p.timeoutSeconds }}
  failureThreshold: {{ $p.readinessFailures }}
livenessProbe:
  httpGet: {path: /health/live, port: http}
  periodSeconds: {{ $p.periodSeconds }}
  timeoutSeconds: {{ $p.timeoutSeconds }}
  failureThreshold: {{ $p.livenessFailures }}
{{- end -}}

{{- define "shadowserve.resources" -}}
{{- $resources := deepCopy .Values.resources -}}
{{- if gt (int .Values.gpu.count) 0 -}}
{{- range $kind := list "requests" "limits" -}}
{{- $_ := set $resources $kind (merge (dict $.Values.gpu.resourceName (toString (int $.Values.gpu.count))) (default dict (get $resources $kind))) -}}
{{- end -}}
{{- end -}}
{{ toYaml $resources }}
{{- end -}}

{{- define "shadowserve.volumeMounts" -}}
- name: config
  mountPath: /etc/shadowserve/config
  readOnly: true
- name: state
  mountPath: /var/lib/shadowserve
- name: cache
  mountPath: /var/cache/shadowserve
- name: tmp
  mountPath: /tmp
- name: shm
  mountPath: /dev/shm
{{- if .Values.model.volume }}
- name: model
  mountPath: /models
  readOnly: true
{{- end }}
{{- if .Values.adapterVolume }}
- name: adapters
  mountPath: /adapters
  readOnly: true
{{- end }}
{{- if .Values.tenantsSecret.name }}
- name: tenants
  mountPath: /etc/shadowserve/tenants
  readOnly: true
{{- else if .Values.tenants }}
- name: run
  mountPath: /run/shadowserve
  readOnly: true
{{- end }}
{{- end -}}

{{- define "shadowserve.volumes" -}}
- name: config
  configMap:
    name: {{ include "shadowserve.fullname" . }}
- name: state
  {{- if .Values.persistence.enabled }}
  persistentVolumeClaim:
    claimName: {{ default (include "shadowserve.fullname" .) .Values.persistence.existingClaim }}
  {{- else }}
  emptyDir:
    sizeLimit: {{ .Values.persistence.size }}
  {{- end }}
- name: cache
  {{- if .Values.cache.volume }}
  {{- toYaml .Values.cache.volume | nindent 2 }}
  {{- else }}
  emptyDir:
    sizeLimit: {{ .Values.cache.size }}
  {{- end }}
- name: tmp
  emptyDir: {}
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ .Values.cache.sharedMemory }}
{{- with .Values.model.volume }}
- name: model
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.adapterVolume }}
- name: adapters
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if .Values.tenantsSecret.name }}
- name: tenants
  secret:
    secretName: {{ .Values.tenantsSecret.name }}
{{- else if .Values.tenants }}
# Hashes of keys, in memory.
- name: run
  emptyDir:
    medium: Memory
    sizeLimit: 16Mi
{{ include "shadowserve.keysVolume" . }}
{{- end }}
{{- end -}}

{{/* Every key is a file <secret>/<key>; the mode lets the containers' group read it. */}}
{{- define "shadowserve.keysVolume" -}}
{{- $keys := dict -}}
{{- range .Values.tenants -}}
  {{- range .keys -}}
    {{- $_ := set $keys .secretName (append (default list (get $keys .secretName)) .secretKey) -}}
  {{- end -}}
{{- end -}}
- name: keys
  projected:
    defaultMode: 0440
    {{- if $keys }}
    sources:
      {{- range $secret, $items := $keys }}
      - secret:
          name: {{ $secret }}
          items:
            {{- range $items | uniq }}
            - key: {{ . }}
              path: {{ $secret }}/{{ . }}
            {{- end }}
      {{- end }}
    {{- else }}
    sources: []
    {{- end }}
{{- end -}}
