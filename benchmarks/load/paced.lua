-- Requests are due at random times, RATE a second on average, whether or not earlier ones are answered:
-- wrk -t1 -s paced.lua URL -- BODIES PATH RATE
-- As long as a connection is free, a request leaves when it is due; how late it left is reported. The server gives
-- X-Request-Id back, so each answer tells when its request left. The last line of the output is JSON, times in ms.

local ffi = require("ffi")
ffi.cdef [[
  typedef struct { long seconds, nanoseconds; } moment;
  int clock_gettime(int, moment *);
]]
local moment = ffi.new("moment")

local function now() -- microseconds
  ffi.C.clock_gettime(1, moment)
  return tonumber(moment.seconds) * 1e6 + tonumber(moment.nanoseconds) / 1e3
end

local threads = {}
local head, bodies, index, gap, due, waiting, first, last = "", {}, 0, 0, 0, {}, 1, 0
times, late, sent, began, ended = {}, {}, 0, 0, 0 -- read by done(); wrk hands over no table in a table
local GROWTH = math.log(1.02) -- a bucket of a histogram is 2 % wide
local KIND = 10000 -- a histogram of status S begins at S * KIND

local function count(histogram, kind, value)
  local bucket = kind * KIND + (value <= 1 and 0 or math.floor(math.log(value) / GROWTH))
  histogram[bucket] = (histogram[bucket] or 0) + 1
end

function setup(thread)
  threads[#threads + 1] = thread
end

function init(args)
  gap = 1e6 / tonumber(args[3])
  for body in io.lines(args[1]) do
    bodies[#bodies + 1] = string.format("Content-Length: %d\r\n\r\n%s", #body, body)
  end
  head = string.format(
    "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nX-Request-Id: ", args[2], wrk.host)
  math.randomseed(7)
end

function delay() -- the next request is this connection's
  local time = now()
  if began == 0 then
    began, due = time, time
  end
  due = due - gap * math.log(1 - math.random())
  last = last + 1
  waiting[last] = due
  return math.max(0, math.ceil((due - time) / 1e3))
end

function request()
  local time = now()
  local was = waiting[first] or time
  waiting[first] = nil
  first = math.min(first, last) + 1
  count(late, 0, time - was)
  sent = sent + 1
  index = index % #bodies + 1
  return string.format("%st%.0f\r\n%s", head, time, bodies[index])
end

function response(status, headers)
  local id = headers["X-Request-Id"] or headers["x-request-id"] or ""
  ended = now()
  count(times, status, ended - (tonumber(id:sub(2)) or ended))
end

local function figures(histogram)
  local buckets, total = {}, 0
  for bucket, number in pairs(histogram) do
    buckets[#buckets + 1] = bucket
    total = total + number
  end
  table.sort(buckets)
  local found, seen, place = {}, 0, 1
  for _, bucket in ipairs(buckets) do
    seen = seen + histogram[bucket]
    local shares = {0.5, 0.99, 1}
    while place <= 3 and seen >= shares[place] * total do
      found[place] = math.exp((bucket + 0.5) * GROWTH) / 1e3
      place = place + 1
    end
  end
  return string.format('{"count": %d, "p50": %f, "p99": %f, "most": %f}', total, found[1] or 0, found[2] or 0,
    found[3] or 0)
end

function done(summary)
  local thread, errors, parts = threads[1], summary.errors, {}
  local statuses = {}
  for bucket, number in pairs(thread:get("times")) do
    local status = math.floor(bucket / KIND)
    statuses[status] = statuses[status] or {}
    statuses[status][bucket - status * KIND] = number
  end
  for status, histogram in pairs(statuses) do
    parts[#parts + 1] = string.format('"%d": %s', status, figures(histogram))
  end
  print(string.format('{"seconds": %f, "sent": %d, "broken": %d, "late": %s, "statuses": {%s}}',
    (thread:get("ended") - thread:get("began")) / 1e6, thread:get("sent"),
    errors.connect + errors.read + errors.write + errors.timeout, figures(thread:get("late")),
    table.concat(parts, ", ")))
end
