{{- define "idleconn.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "idleconn.selector" -}}
app.kubernetes.io/name: idleconn-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "idleconn.labels" -}}
{{ include "idleconn.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: idleconn-operator
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "idleconn.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "idleconn.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "idleconn.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* Environment shared by the controller and the pre-delete hook. */}}
{{- define "idleconn.env" -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: IDLECONN_LOG_FORMAT
  value: {{ .Values.log.format | quote }}
- name: IDLECONN_LOG_LEVEL
  value: {{ .Values.log.level | quote }}
{{- with .Values.namespaces }}
- name: IDLECONN_NAMESPACES
  value: {{ join "," . | quote }}
{{- end }}
{{- with .Values.allowEndpoints }}
- name: IDLECONN_ALLOW_ENDPOINTS
  value: {{ join "," . | quote }}
{{- end }}
{{- if .Values.leaderElection.enabled }}
- name: IDLECONN_LEADER_ELECTION
  value: "true"
- name: IDLECONN_LEASE_NAMESPACE
  value: {{ .Release.Namespace | quote }}
- name: IDLECONN_LEASE_NAME
  value: {{ include "idleconn.fullname" . | quote }}
- name: IDLECONN_LEASE_DURATION
  value: {{ .Values.leaderElection.leaseDuration | quote }}
- name: IDLECONN_LEASE_RENEW_DEADLINE
  value: {{ .Values.leaderElection.renewDeadline | quote }}
- name: IDLECONN_LEASE_RETRY_PERIOD
  value: {{ .Values.leaderElection.retryPeriod | quote }}
{{- end }}
{{- if gt (int .Values.shards) 1 }}
- name: IDLECONN_SHARDS
  value: {{ .Values.shards | quote }}
{{- end }}
{{- end -}}

{{- define "idleconn.operatorEnv" -}}
{{ include "idleconn.env" . }}
- name: IDLECONN_METRICS_ADDRESS
  value: ":8080"
- name: IDLECONN_API_ADDRESS
  value: {{ ternary .Values.api.address "none" .Values.api.enabled | quote }}
{{- if and .Values.api.enabled (gt (int .Values.shards) 1) (not (hasPrefix "127." .Values.api.address)) }}
# A replica that does not act for a namespace redirects to the one that does.
- name: IDLECONN_API_HOST
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
{{- end }}
- name: IDLECONN_RESYNC_INTERVAL
  value: {{ .Values.resyncInterval | quote }}
{{- with .Values.maxFlushesPerMinute }}
- name: IDLECONN_MAX_FLUSHES_PER_MINUTE
  value: {{ . | int | quote }}
{{- end }}
{{- if .Values.dryRun }}
- name: IDLECONN_DRY_RUN
  value: "true"
{{- end }}
{{- end -}}

{{/*
Environment of a container: the chart's, as YAML in `own`, followed by the user's in `more`. If both set a name, only
the user's remains, because a server-side apply rejects duplicates.
*/}}
{{- define "idleconn.mergedEnv" -}}
{{- $names := list -}}
{{- range .more }}{{ $names = append $names .name }}{{ end -}}
{{- $all := list -}}
{{- range .own | fromYamlArray }}{{ if not (has .name $names) }}{{ $all = append $all . }}{{ end }}{{ end -}}
{{- toYaml (concat $all (.more | default list)) -}}
{{- end -}}

{{/* Labels of an object, with the user's in `more`. The user's take precedence, except over the selector labels. */}}
{{- define "idleconn.mergedLabels" -}}
{{- $own := include "idleconn.labels" .root | fromYaml -}}
{{- $selector := include "idleconn.selector" .root | fromYaml -}}
{{- toYaml (merge $selector (.more | default dict) $own) -}}
{{- end -}}

{{- define "idleconn.imagePullSecrets" -}}
{{- range .Values.imagePullSecrets }}
- name: {{ if kindIs "string" . }}{{ . }}{{ else }}{{ .name }}{{ end }}
{{- end }}
{{- end -}}

{{- define "idleconn.podSecurity" -}}
runAsNonRoot: true
{{- if .Values.fixedUser }}
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
{{- end }}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "idleconn.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Permissions on the objects that policies refer to, by target type. A Role and a ClusterRole use the same rules. */}}
{{- define "idleconn.rules" -}}
# Policies: watch them, and write the finalizer and the status. The spec is never written.
- {apiGroups: [idleconn.io], resources: [idleconnectionpolicies], verbs: [get, list, watch, patch]}
- {apiGroups: [idleconn.io], resources: [idleconnectionpolicies/status], verbs: [patch]}
- {apiGroups: [events.k8s.io], resources: [events], verbs: [get, create]}
# The nodes' original settings, saved before the first write.
- {apiGroups: [apps], resources: [controllerrevisions], verbs: [list, create, delete]}
# Selected pods.
- {apiGroups: [""], resources: [pods], verbs: [get, list, watch]}
{{- if or .Values.targets.aistore .Values.targets.caddy }}
- {apiGroups: [""], resources: [services], verbs: [get]}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list]}
{{- end }}
# Tokens and CAs that policies name; never listed or watched.
- {apiGroups: [""], resources: [secrets], verbs: [get]}
{{- if .Values.targets.configMap }}
- {apiGroups: [""], resources: [configmaps], verbs: [get, create, patch, delete]}
{{- else }}
- {apiGroups: [""], resources: [configmaps], verbs: [get]}
{{- end }}
{{- if .Values.restarts }}
{{- if .Values.targets.aistore }}
- {apiGroups: [""], resources: [pods/eviction], verbs: [create]}
{{- end }}
{{- if .Values.targets.configMap }}
- {apiGroups: [apps], resources: [deployments, statefulsets, daemonsets], verbs: [get, patch]}
{{- end }}
{{- end }}
{{- end -}}
