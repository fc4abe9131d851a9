-- Health of a Benchmark for Argo CD: healthy once it is done. With spec.gate what has regressed, or cannot be told, is
-- degraded, so that no later wave is synced.
local status = obj.status or {}
local message = status.message or ""

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
if status.phase ~= "Succeeded" then
  return health("Progressing")
end
message = (status.verdict or "") .. (status.verdictReason and ": " .. status.verdictReason or "")
if obj.spec.gate and status.verdict ~= "Passed" and status.verdict ~= "Improved" then
  return health("Degraded")
end
return health("Healthy")
