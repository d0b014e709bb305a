-- Sends one request again and again; its body is the file named last. At the end writes what was seen as JSON.
function init(args)
    local file = assert(io.open(args[1], "rb"))
    wrk.method, wrk.body = "POST", file:read("*a")
    file:close()
end

function done(summary, latency, requests)
    local errors = summary.errors
    local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
    io.write(string.format(
        '\n{"requests": %d, "seconds": %.6f, "failed": %d, "p50": %.3f, "p99": %.3f, "most": %.3f}\n',
        summary.requests, summary.duration / 1e6, failed,
        latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3
    ))
end
