-- Health of a TrainingJob for Argo CD. A sync wave goes on once it runs; with the annotation
-- capstan.dev/argocd-healthy: Succeeded it goes on only once the job has succeeded.
local status = obj.status or {}
local annotations = obj.metadata.annotations or {}
local message = status.message or ""
local waits_for_end = annotations["capstan.dev/argocd-healthy"] == "Succeeded"

local function health(word)
  return { status = word, message = message }
end

if status.observedGeneration == nil or status.observedGeneration < obj.metadata.generation then
  message = "the operator has not seen this version yet"
  return health("Progressing")
end
if status.phase == "Invalid" or status.phase == "Failed" then
  return health("Degraded")
end
if status.phase == "Suspended" then
  return health("Suspended")
end
if status.phase == "Succeeded" or (status.phase == "Running" and not waits_for_end) then
  return health("Healthy")
end
return health("Progressing")
