{{/*
What the pods of API and workers have in common. These take a list: the component ("api" or "worker"), its values, and
the top.
*/}}

{{/* Without the chart's version: another chart with the same pods would start them all anew. */}}
{{- define "pipeserve.podMetadata" -}}
{{- $component := index . 0 }}{{ $own := index . 1 }}{{ $top := index . 2 -}}
labels:
  {{- include "pipeserve.selectorLabels" $top | nindent 2 }}
  app.kubernetes.io/component: {{ $component }}
  {{- with $own.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $own.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "pipeserve.podSpec" -}}
{{- $component := index . 0 }}{{ $own := index . 1 }}{{ $top := index . 2 }}{{ $values := $top.Values -}}
serviceAccountName: {{ include "pipeserve.serviceAccount" $top }}
automountServiceAccountToken: false
# A Service called "pipeserve" would otherwise set PIPESERVE_PORT and the like.
enableServiceLinks: false
# So that the service is not process 1: a SIGTERM that comes before it has its handlers would be ignored.
shareProcessNamespace: true
securityContext:
  {{- include "pipeserve.podSecurity" $top | nindent 2 }}
{{- with $values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $own.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  {{- if $own.topologySpreadConstraints }}
  {{- toYaml $own.topologySpreadConstraints | nindent 2 }}
  {{- else }}
  {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "pipeserve.selectorLabels" $top | nindent 8 }}
        app.kubernetes.io/component: {{ $component }}
    matchLabelKeys: [pod-template-hash]
  {{- end }}
  {{- end }}
{{- end }}

{{- define "pipeserve.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
# A claim with many files is not walked through at each start.
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "pipeserve.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "pipeserve.image" -}}
{{- $component := index . 0 }}{{ $top := index . 2 -}}
{{ printf "%s:%s" (index $top.Values.image $component) (default $top.Chart.AppVersion $top.Values.image.tag) }}
{{- end }}

{{/*
Makes the deployment of this pod's code and leaves its id where the service finds it. Not a hook of Helm: its account,
policies and claim would not be there yet. And not one Job for all: while versions change, each pod serves the code that
it has, whichever deployment is the newest of the name, and a rollback serves the old one again.
*/}}
{{- define "pipeserve.deploy" -}}
{{- $top := index . 2 }}{{ $values := $top.Values -}}
{{- if not $values.pipeline.deploymentId -}}
initContainers:
  - name: deploy
    image: {{ include "pipeserve.image" . | quote }}
    imagePullPolicy: {{ $values.image.pullPolicy }}
    # The last line, because a pipeline's module may print too.
    command:
      - sh
      - -ec
      - |
        pipeserve deploy "$1" --name "$2" >/deployment/said
        tail -n 1 /deployment/said >/deployment/id
        echo "deployment $(cat /deployment/id)"
      - deploy
      - {{ $values.pipeline.target | quote }}
      - {{ default (include "pipeserve.fullname" $top) $values.pipeline.name | quote }}
    env:
      {{- include "pipeserve.environment" $top | nindent 6 }}
    {{- with $values.extraEnvFrom }}
    envFrom:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    resources:
      {{- toYaml (index . 1).resources | nindent 6 }}
    securityContext:
      {{- include "pipeserve.containerSecurity" $top | nindent 6 }}
    volumeMounts:
      - name: deployment
        mountPath: /deployment
      {{- include "pipeserve.mounts" $top | nindent 6 }}
{{- end }}
{{- end }}

{{- define "pipeserve.command" -}}
{{- $component := index . 0 }}{{ $top := index . 2 -}}
{{- if $top.Values.pipeline.deploymentId -}}
command: [pipeserve, {{ $component }}]
{{- else -}}
command:
  - sh
  - -ec
  - |
    ZENML_PIPELINE_DEPLOYMENT_ID=$(cat /deployment/id)
    export ZENML_PIPELINE_DEPLOYMENT_ID
    exec pipeserve {{ $component }}
{{- end }}
{{- end }}

{{- define "pipeserve.environment" -}}
{{- $values := .Values -}}
- name: PIPESERVE_REDIS_URL
  valueFrom:
    secretKeyRef:
      name: {{ $values.redis.existingSecret }}
      key: {{ $values.redis.key }}
{{- with $values.pipeline.deploymentId }}
- name: ZENML_PIPELINE_DEPLOYMENT_ID
  value: {{ . | quote }}
{{- end }}
- name: PIPESERVE_ARTIFACTS_URL
  value: {{ default "file:///artifacts" $values.artifacts.url | quote }}
- name: PIPESERVE_DRAIN_SECONDS
  value: {{ $values.drainSeconds | quote }}
- name: PIPESERVE_MAX_BODY
  value: {{ $values.maxBody | int64 | quote }}
{{- with $values.webhooks.existingSecret }}
- name: PIPESERVE_WEBHOOK_SECRET
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: {{ $values.webhooks.key }}
{{- end }}
{{- range $name, $value := $values.settings }}
- name: {{ $name }}
  {{- /* A large whole number comes as a float and would be written 2e+06. */}}
  value: {{ ternary ($value | int64) $value (and (kindIs "float64" $value) (eq (floor $value) $value)) | quote }}
{{- end }}
{{- with $values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "pipeserve.mounts" -}}
- name: tmp
  mountPath: /tmp
{{- if .Values.artifacts.existingClaim }}
- name: artifacts
  mountPath: /artifacts
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "pipeserve.volumes" -}}
- name: tmp
  emptyDir:
    sizeLimit: {{ .Values.tmpSize }}
{{- if not .Values.pipeline.deploymentId }}
- name: deployment
  emptyDir:
    sizeLimit: 1Mi
{{- end }}
{{- with .Values.artifacts.existingClaim }}
- name: artifacts
  persistentVolumeClaim:
    claimName: {{ . }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
