{{- define "capstan.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 52 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "capstan.selector" -}}
app.kubernetes.io/name: capstan-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* What the chart says of its objects wins over commonLabels: selectors depend on it. */ -}}
{{- define "capstan.labels" -}}
{{- $own := include "capstan.selector" . | fromYaml }}
{{- $_ := set $own "app.kubernetes.io/version" .Chart.AppVersion }}
{{- $_ := set $own "app.kubernetes.io/part-of" "capstan" }}
{{- $_ := set $own "app.kubernetes.io/managed-by" .Release.Service }}
{{- $_ := set $own "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_") }}
{{- merge $own .Values.commonLabels | toYaml }}
{{- end }}

{{- /* Labels of a kind of Prometheus or Grafana: (list context labels), by which those find it; theirs win. */ -}}
{{- define "capstan.labelsWith" -}}
{{- $own := include "capstan.labels" (index . 0) | fromYaml }}
{{- mergeOverwrite $own (index . 1) | toYaml }}
{{- end }}

{{- define "capstan.account" -}}
{{- .Values.serviceAccount.name | default (include "capstan.name" .) }}
{{- end }}

{{- define "capstan.image" -}}
{{- with .Values.operator.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- /* An image that the operator starts: (list context value name), the value or the name with the appVersion. */ -}}
{{- define "capstan.started" -}}
{{- index . 1 | default (printf "capstan/%s:%s" (index . 2) (index . 0).Chart.AppVersion) }}
{{- end }}
