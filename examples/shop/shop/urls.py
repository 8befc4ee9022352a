"""The pages of the shop."""

from django.urls import path

from shop import views

urlpatterns = [
    path("", views.index),
    path("health/", views.health),
    path("slow/", views.slow),
    path("upload", views.upload),
    path("media/<str:name>", views.media),
]
