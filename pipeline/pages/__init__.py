"""Pages for a browser: a report of each release and a gallery over all, static files in the store.

releases/<name>/<n>/report.html        written by publish, as things stood then; one file that needs no other
gallery/index.html                     every release, by `atelier gallery`
gallery/<name>/<n>.html                the same report as things stand now, with the live sampler
gallery/sampler/                       what runs a model in the visitor's browser, shared by the reports

content    what a report shows, without a word of HTML
gather     reads it from the store
shown      images as they are put into a page
drawn      what only the network can make: a walk through its latents, directions for the sliders
charts     where the marks of a chart stand
render     templates to bytes, with the policy that lets a page load nothing from elsewhere
gallery, runtime, serve: the gallery's own
"""
