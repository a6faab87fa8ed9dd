-- Argo CD health check of an IdleConnectionPolicy. Its place is the key
-- resource.customizations.health.idleconn.io_IdleConnectionPolicy of ConfigMap argocd-cm.
-- Health follows Ready and Stalled only. It does not change while limits are tightened (conditions Tightened and
-- TighteningLimited) or while nodes wait for a restart (InEffect).
local health = { status = "Progressing", message = "The operator has not reconciled this generation yet" }
if obj.status == nil or obj.status.conditions == nil or obj.status.observedGeneration ~= obj.metadata.generation then
  return health
end
local found = {}
for _, condition in ipairs(obj.status.conditions) do
  found[condition.type] = condition
end
local ready, stalled = found["Ready"], found["Stalled"]
if stalled ~= nil and stalled.status == "True" then
  return { status = "Degraded", message = stalled.message }
end
if ready ~= nil and ready.status == "True" then
  if ready.reason == "Suspended" then
    return { status = "Suspended", message = ready.message }
  end
  return { status = "Healthy", message = ready.message }
end
if ready ~= nil and ready.status == "False" then
  health.message = ready.message
end
return health
