-- Health of an InferenceService for Argo CD: healthy once all traffic goes to what the spec asks for. One that waits for
-- its model is not broken: git may hold the job that trains it, in this wave or in an earlier one.
local status = obj.status or {}
local message = status.message or ""
local awaited = {
  TrainingJobNotFound = true,
  TrainingJobNotDone = true,
  NoVerifiedCheckpoint = true,
  RegistryAsked = true,
  PredecessorLeaving = true,
}
local is = {}
for _, condition in ipairs(status.conditions or {}) do
  is[condition.type] = condition.status
end

local function health(word)
  return { status = word, message = message }
end

if status.observedGeneration == nil or status.observedGeneration < obj.metadata.generation then
  message = "the operator has not seen this version yet"
  return health("Progressing")
end
if is.Accepted == "False" or is.RolledBack == "True" then
  return health("Degraded")
end
if is.Serving == "True" and is.UpToDate == "True" then
  return health("Healthy")
end
if is.Progressing == "True" or awaited[status.reason or ""] then
  return health("Progressing")
end
if is.Serving == "True" or is.Serving == "Unknown" or is.Serving == nil then
  return health("Progressing")
end
return health("Degraded")
