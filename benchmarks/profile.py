def run(bench, call): return ""
