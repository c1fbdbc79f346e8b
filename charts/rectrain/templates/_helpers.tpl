{{- define "rectrain.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "rectrain.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains (include "rectrain.name" .) .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "rectrain.name" .) | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "rectrain.selectorLabels" -}}
app.kubernetes.io/name: {{ include "rectrain.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: controller
{{- end }}

{{- define "rectrain.labels" -}}
{{ include "rectrain.selectorLabels" . }}
{{ include "rectrain.releaseLabels" . }}
{{- end }}

{{/* What all objects of a release have. */}}
{{- define "rectrain.releaseLabels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "rectrain.recallName" -}}
{{ include "rectrain.fullname" . }}-recall
{{- end }}

{{- define "rectrain.recallSelectorLabels" -}}
app.kubernetes.io/name: {{ include "rectrain.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: recall
{{- end }}

{{- define "rectrain.recallLabels" -}}
{{ include "rectrain.recallSelectorLabels" . }}
{{ include "rectrain.releaseLabels" . }}
{{- end }}

{{- define "rectrain.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (ternary (include "rectrain.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- define "rectrain.image" -}}
{{ include "rectrain.imageOf" (dict "image" .Values.image "version" .Chart.AppVersion) }}
{{- end }}

{{- define "rectrain.recallImage" -}}
{{ include "rectrain.imageOf" (dict "image" .Values.recall.image "version" .Chart.AppVersion) }}
{{- end }}

{{- define "rectrain.imageOf" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .version }}
{{- end }}
{{- end }}

{{/* What every container of the chart runs under. */}}
{{- define "rectrain.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "rectrain.podSecurityContext" -}}
runAsNonRoot: true
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* What the controller may do in the namespaces whose jobs it works on: each verb is one that it uses. */}}
{{- define "rectrain.jobRules" -}}
- apiGroups: [rectrain.io]
  resources: [rectrainingjobs]
  verbs: [get, list, watch, delete]  # delete: after ttlSecondsAfterFinished
- apiGroups: [rectrain.io]
  resources: [rectrainingjobs/status]
  verbs: [patch]
- apiGroups: [rectrain.io]
  resources: [rectrainingjobs/finalizers]
  verbs: [update]  # to own objects whose owner's deletion waits for them, where the API server asks for it
- apiGroups: [kubeflow.org]
  resources: [pytorchjobs]
  verbs: [get, list, watch, create, delete]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]  # patch: a second job joins the owners of a conversion
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [configmaps]
  # get: one that was deleted while pods wait for it is made again; patch: a second job joins the owners of what a
  # conversion reads
  verbs: [get, create, patch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, list]  # list: why the training operator cannot create pods
{{- end }}
