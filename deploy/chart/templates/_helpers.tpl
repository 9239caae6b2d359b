{{- define "autovoice.labels" -}}
app.kubernetes.io/name: autovoice
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* Of the servers of one release; takes (dict "top" $ "number" N). */ -}}
{{- define "autovoice.serverLabels" -}}
{{ include "autovoice.labels" .top }}
app.kubernetes.io/component: server
autovoice-release: {{ .number | quote }}
{{- end }}

{{- define "autovoice.proxyLabels" -}}
{{ include "autovoice.labels" . }}
app.kubernetes.io/component: proxy
{{- end }}

{{- /* Fails where the values name releases that there are not. */ -}}
{{- define "autovoice.check" -}}
{{- $numbers := list }}
{{- range .Values.releases }}
{{- if has .number $numbers }}{{ fail (printf "releases has number %v twice; give each release once" .number) }}{{ end }}
{{- $numbers = append $numbers .number }}
{{- end }}
{{- if not (has .Values.stable $numbers) }}
{{- fail (printf "stable is %v, which is none of releases; give the number of one" .Values.stable) }}
{{- end }}
{{- if .Values.candidate }}
{{- if not (has .Values.candidate $numbers) }}
{{- fail (printf "candidate is %v, which is none of releases; give the number of one, or null" .Values.candidate) }}
{{- end }}
{{- if eq .Values.candidate .Values.stable }}
{{- fail (printf "candidate and stable are both %v; set candidate to null once it is promoted" .Values.stable) }}
{{- end }}
{{- else if or .Values.share .Values.shadow }}
{{- fail "share and shadow are percent for a candidate, and there is none; set candidate, or both to 0" }}
{{- end }}
{{- end }}

{{- define "autovoice.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "autovoice.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- /* Whether any release comes from S3. */ -}}
{{- define "autovoice.usesS3" -}}
{{- range .Values.releases }}{{ if .model.s3 }}yes{{ end }}{{ end }}
{{- end }}

{{- /* Routes by the header autovoice-release, then for headers of releases that are gone, then by shares. Takes top,
       protocol, match and timeout. */ -}}
{{- define "autovoice.routes" -}}
{{- $values := .top.Values }}
{{- range $release := $values.releases }}
{{- $number := toString $release.number }}
- match: {{ printf "{%s, headers: [{name: autovoice-release, string_match: {exact: %q}}]}" $.match $number }}
  route:
    cluster: release_{{ $number }}_{{ $.protocol }}
    {{- include "autovoice.manner" $ | nindent 4 }}
  {{- include "autovoice.naming" $number | nindent 2 }}
{{- end }}
- match: {{ printf "{%s, headers: [{name: autovoice-release, present_match: true}]}" .match }}
  {{- $gone := "no such release is served here any more; begin again without the header autovoice-release" }}
  {{- if eq .protocol "http" }}
  direct_response: {status: 410, body: {inline_string: {{ printf "{\"error\": %q}" $gone | quote }}}}
  response_headers_to_add: [{header: {key: content-type, value: application/json}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}]
  {{- else }}
  direct_response: {status: 503, body: {inline_string: {{ $gone | quote }}}} # Envoy makes UNAVAILABLE of it
  {{- end }}
- match: {{ printf "{%s}" .match }}
  route:
    {{- include "autovoice.manner" . | nindent 4 }}
    weighted_clusters:
      clusters:
        {{- if lt (int $values.share) 100 }}
        - name: release_{{ $values.stable }}_{{ .protocol }}
          weight: {{ sub 100 $values.share }}
          {{- include "autovoice.naming" $values.stable | nindent 10 }}
        {{- end }}
        {{- if $values.share }}
        - name: release_{{ $values.candidate }}_{{ .protocol }}
          weight: {{ $values.share }}
          {{- include "autovoice.naming" $values.candidate | nindent 10 }}
        {{- end }}
    {{- if and $values.shadow (not $values.share) (ne .timeout "0s") }}
    request_mirror_policies: [{cluster: release_{{ $values.candidate }}_{{ .protocol }}, runtime_fraction: {default_value: {numerator: {{ $values.shadow }}, denominator: HUNDRED}}}]
    {{- end }}
{{- end }}

{{- /* A request is sent again where no server has seen it; all chunks of a live sequence go to one replica. */ -}}
{{- define "autovoice.manner" -}}
timeout: {{ .timeout }}
retry_policy: {retry_on: "connect-failure,refused-stream,reset-before-request", num_retries: 3}
hash_policy: [{header: {header_name: autovoice-sequence}}]
{{- end }}

{{- define "autovoice.naming" -}}
response_headers_to_add: [{header: {key: autovoice-release, value: {{ . | quote }}}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}]
{{- end }}

{{- /* Relabelings of prometheus.yml in the words of the Prometheus operator. */ -}}
{{- define "autovoice.relabelings" -}}
{{- range . }}
- {{ with .source_labels }}sourceLabels: {{ toJson . }}
  {{ end }}{{ with .target_label }}targetLabel: {{ . }}
  {{ end }}{{ with .replacement }}replacement: {{ . | quote }}
  {{ end }}{{ with .action }}action: {{ . }}
  {{ end }}regex: {{ .regex | toJson }}
{{- end }}
{{- end }}

{{- /* A predictor of KServe; takes top and number. */ -}}
{{- define "autovoice.predictor" -}}
{{- $number := .number }}
{{- range $release := $.top.Values.releases }}
{{- if eq $release.number $number }}
minReplicas: {{ $release.replicas }}
maxReplicas: {{ max $release.replicas $.top.Values.scaling.maxReplicas }}
terminationGracePeriodSeconds: {{ add $.top.Values.drainSeconds 30 }}
serviceAccountName: {{ $.top.Values.serviceAccount }}
securityContext: {{- include "autovoice.podSecurity" $.top | nindent 2 }}
labels:
  autovoice-release: {{ $number | quote }}
model:
  name: release-{{ $number }}
  runtime: {{ $.top.Release.Name }}
  modelFormat: {name: autovoice, version: "1"}
  protocolVersion: v2
  storageUri: {{ $release.model.s3 | default (printf "oci://%s" $release.model.image) | quote }}
{{- end }}
{{- end }}
{{- end }}
