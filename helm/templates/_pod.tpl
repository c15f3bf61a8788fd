{{/* What every pod of the chart gives up. The server's own sandbox adds a system-call filter to its forks, which needs
     no privilege once no_new_privs is set, and RuntimeDefault allows it. */}}
{{- define "shadowserve.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ int .Values.runAsUser }}
runAsGroup: {{ int .Values.runAsUser }}
fsGroup: {{ int .Values.runAsUser }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "shadowserve.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "shadowserve.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* A pod of a Job or a test: one script of the chart's ConfigMap against the server. */}}
{{- define "shadowserve.scriptPod" -}}
restartPolicy: {{ .restartPolicy }}
automountServiceAccountToken: false
enableServiceLinks: false
serviceAccountName: {{ .serviceAccountName | default (include "shadowserve.serviceAccountName" .root) }}
{{- include "shadowserve.pullSecrets" .root }}
securityContext:
  {{- include "shadowserve.podSecurity" .root | nindent 2 }}
containers:
  - name: {{ .name }}
    image: {{ include "shadowserve.image" .root | quote }}
    imagePullPolicy: {{ .root.Values.image.pullPolicy }}
    command: [python3, /etc/shadowserve/config/{{ .script }}]
    args: {{ toJson .args }}
    securityContext:
      {{- include "shadowserve.containerSecurity" .root | nindent 6 }}
    env:
      - name: HOME
        value: /tmp
      {{- with .root.Values.adminKeySecret }}
      {{- if .name }}
      - name: ADMIN_KEY
        valueFrom:
          secretKeyRef:
            name: {{ .name }}
            key: {{ .key }}
      {{- end }}
      {{- end }}
    resources:
      requests: {cpu: 50m, memory: 128Mi}
      limits: {memory: 512Mi}
    volumeMounts:
      - name: config
        mountPath: /etc/shadowserve/config
        readOnly: true
      - name: tmp
        mountPath: /tmp
volumes:
  - name: config
    configMap:
      name: {{ include "shadowserve.fullname" .root }}
  - name: tmp
    emptyDir:
      sizeLimit: 64Mi
{{- end -}}
