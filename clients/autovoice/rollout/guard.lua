local longest = 16384 -- bytes of JSON before the tensors; so deep it can be nested at most
function envoy_on_request(handle)
  local headers = handle:headers()
  if headers:get(":method") == "GET" then return end
  local told = headers:get("inference-header-content-length")
  local twice = headers:getNumValues("inference-header-content-length") > 1
  local encoded = headers:get("content-encoding")
  local body = handle:body(true) -- waits; headers cannot be asked any more
  local size = body:length()
  local length = tonumber(told or size)
  local refused = encoded or twice or not length or length > longest
  if not refused then
    local json = body:getBytes(0, math.max(0, math.min(length, size)))
    refused = json:find('"data"', 1, true) or json:find("\\", 1, true)
  end
  if refused then
    handle:respond(
      {[":status"] = "400", ["content-type"] = "application/json"},
      '{"error":"send tensors as binary data, described by a short JSON without them"}')
  end
end
