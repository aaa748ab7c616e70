{{- define "fabrictap.name" -}}
{{- .Values.nameOverride | default .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "fabrictap.selector" -}}
app.kubernetes.io/name: fabrictap
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "fabrictap.labels" -}}
{{ include "fabrictap.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: agent
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "fabrictap.serviceAccount" -}}
{{- if .Values.serviceAccount.name -}}
{{ .Values.serviceAccount.name }}
{{- else -}}
{{ ternary (include "fabrictap.name" .) "default" .Values.serviceAccount.create }}
{{- end -}}
{{- end -}}

{{- define "fabrictap.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* An emptyDir may be written by all, and the recording lies in no such directory: it gets one of its own below. */}}
{{- define "fabrictap.ring" -}}
/run/fabrictap/{{ ternary "simulated/ring" "ring" (ne .Values.simulate "") }}
{{- end -}}

{{/* The configuration file: what the chart's values stand for, and .Values.config over it. */}}
{{- define "fabrictap.config" -}}
{{- $base := dict "ring" (dict "path" (include "fabrictap.ring" .)) -}}
{{- if .Values.simulate -}}
{{- $_ := set $base "sources" (dict "simulated" (dict "profile" .Values.simulate)) -}}
{{- else -}}
{{- $kubelet := dict "enabled" "on" -}}
{{- if .Values.kubelet.podList.enabled -}}
{{- $_ := set $kubelet "token_file" "/var/run/secrets/kubernetes.io/serviceaccount/token" -}}
{{- $_ := set $kubelet "certificate" (ternary "/etc/fabrictap/kubelet/ca.crt" "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt" (ne .Values.kubelet.podList.caSecret "")) -}}
{{- end -}}
{{- $dcgm := dict "enabled" .Values.dcgm.enabled "address" .Values.dcgm.address -}}
{{- $_ := set $base "sources" (dict "kubelet" $kubelet "dcgm" $dcgm) -}}
{{- end -}}
{{- $export := dict -}}
{{- if .Values.prometheus.enabled -}}
{{- $address := ternary "127.0.0.1" "0.0.0.0" .Values.hostNetwork -}}
{{- $listen := dict "listen" (printf "%s:%v" $address .Values.prometheus.port) -}}
{{- if not .Values.hostNetwork -}}{{- $_ := set $listen "allow_remote" true -}}{{- end -}}
{{- $_ := set $export "prometheus" $listen -}}
{{- end -}}
{{- if .Values.otlp.tls.secretName -}}
{{- $signal := dict "certificate" "/etc/fabrictap/tls/ca.crt" -}}
{{- if .Values.otlp.tls.mutual -}}
{{- $_ := set $signal "client_certificate" "/etc/fabrictap/tls/tls.crt" -}}
{{- $_ := set $signal "client_key" "/etc/fabrictap/tls/tls.key" -}}
{{- end -}}
{{- $_ := set $export "otlp" (dict "metrics" $signal "traces" (deepCopy $signal) "logs" (deepCopy $signal)) -}}
{{- end -}}
{{- if $export -}}{{- $_ := set $base "export" $export -}}{{- end -}}
{{- if .Values.policy -}}{{- $_ := set $base "policy" .Values.policy -}}{{- end -}}
{{- toYaml (mergeOverwrite $base (deepCopy .Values.config)) -}}
{{- end -}}
